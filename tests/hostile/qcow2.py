"""qcow2 images: a sound one made by hand, and what can be bent in it.

Byte offsets are those of QEMU's ``docs/interop/qcow2.txt``.
"""

from __future__ import annotations

import functools
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fakes import images
from tests.hostile.table import ADMITTED, Judge, Row, made, patched

if TYPE_CHECKING:
    from collections.abc import Callable

BITS = 12
CLUSTER = 1 << BITS
TABLE, BLOCK, L1, L2, DATA, END = (n * CLUSTER for n in (1, 2, 3, 4, 5, 7))
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62

VERSION, BACKING_AT, BACKING_LENGTH, CLUSTER_BITS, SIZE, CRYPT = 4, 8, 16, 20, 24, 32
L1_ENTRIES, L1_AT, TABLE_AT, TABLE_CLUSTERS, SNAPSHOTS, SNAPSHOTS_AT = 36, 40, 48, 56, 60, 64
INCOMPATIBLE, AUTOCLEAR, ORDER, HEADER_LENGTH, COMPRESSION, EXTENSIONS = 72, 88, 96, 100, 104, 112


def sound(*patches: tuple[int, str, object], version: int = 3, entries: int = 1) -> bytes:
    """Give a disk of 1 MiB with two clusters of data, with fields of it overwritten."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, 0, 0, BITS, 1 << 20, 0, entries, L1, TABLE, 1, 0, 0),
    )
    if version > 2:
        header += struct.pack(">QQQIIQ", 0, 0, 0, 4, 112, 0)
    image = header.ljust(END, b"\xa5" if version < 0 else b"\0")
    return patched(
        image,
        (TABLE, ">Q", BLOCK),
        *((BLOCK + 2 * n, ">H", 1) for n in range(END // CLUSTER)),
        (L1, ">Q", L2 | COPIED),
        (L2, ">Q", DATA | COPIED),
        (L2 + 8, ">Q", (DATA + CLUSTER) | COPIED),
        (DATA, "4s", b"data"),
        *patches,
    )


def named(name: bytes, *patches: tuple[int, str, object], version: int = 3) -> bytes:
    """Give an overlay of a file of this name."""
    return sound(
        (BACKING_AT, ">Q", 1024),
        (BACKING_LENGTH, ">I", len(name)),
        (1024, f"{len(name)}s", name),
        *patches,
        version=version,
    )


def extended(kind: int, body: bytes, *patches: tuple[int, str, object], length: int = -1) -> bytes:
    """Give an image with a header extension of this type."""
    return sound(
        (EXTENSIONS, ">I", kind),
        (EXTENSIONS + 4, ">I", len(body) if length < 0 else length),
        (EXTENSIONS + 8, f"{len(body)}s", body),
        *patches,
    )


@functools.cache
def bomb(mebibytes: int) -> bytes:
    """Give a disk of so many MiB, all of whose clusters are the same few compressed bytes."""
    tables = (mebibytes << 20) // (CLUSTER * (CLUSTER // 8))
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(b"\x01" * CLUSTER) + packer.flush()
    first, l1_at = (4 * CLUSTER, 3 * CLUSTER)
    data = first + tables * CLUSTER
    end = data + CLUSTER
    image = bytearray(sound(version=3)[:L1].ljust(end, b"\0"))
    image[data : data + len(packed)] = packed
    for offset, layout, value in (
        (SIZE, ">Q", mebibytes << 20),
        (L1_ENTRIES, ">I", tables),
        (ORDER, ">I", 5),
        *((BLOCK + 4 * n, ">I", 1) for n in range(end // CLUSTER)),
        (BLOCK + 4 * (data // CLUSTER), ">I", tables * (CLUSTER // 8)),
    ):
        struct.pack_into(layout, image, offset, value)
    # Offset in the low bits, sectors beyond the first in the high ones: none.
    entry = struct.pack(">Q", data | COMPRESSED)
    for n in range(tables):
        struct.pack_into(">Q", image, l1_at + 8 * n, (first + n * CLUSTER) | COPIED)
        table = first + n * CLUSTER
        image[table : table + CLUSTER] = entry * (CLUSTER // 8)
    return bytes(image)


def many_tables(entries: int) -> bytes:
    """Give a disk of 1 MiB with an L1 table far too long, all of it one and the same L2 table.

    Its refcounts are right. Whoever counts them looks at ``entries`` times 2 MiB of entries.
    """
    bits = 21
    cluster = 1 << bits
    l1 = struct.pack(">Q", 4 * cluster) * entries
    image = bytearray(
        struct.pack(
            ">4sIQIIQIIQQIIQ",
            *(b"QFI\xfb", 3, 0, 0, bits, 1 << 20, 0, entries, 3 * cluster, cluster, 1, 0, 0),
        )
    )
    image += struct.pack(">QQQIIQ", 0, 0, 0, 6, 112, 0)
    image = image.ljust(5 * cluster, b"\0")
    image[3 * cluster : 3 * cluster + len(l1)] = l1
    struct.pack_into(">Q", image, cluster, 2 * cluster)
    for n, count in enumerate((1, 1, 1, 1, entries)):
        struct.pack_into(">Q", image, 2 * cluster + 8 * n, count)
    return bytes(image)


def _bent(name: str, expected: str, *patches: tuple[int, str, object]) -> Row:
    return Row(
        name=f"qcow2: {name}",
        build=partial(sound, *patches),
        disk_format="qcow2",
        expected=expected,
    )


def _found(name: str, expected: str, *patches: tuple[int, str, object]) -> Row:
    """Give one that qemu-img has to look at: its header is sound."""
    return Row(
        name=f"qcow2: {name}",
        build=partial(sound, *patches),
        disk_format="qcow2",
        expected=expected,
        by=Judge.QEMU_IMG,
    )


def _cut(name: str, end: int, expected: str, by: Judge = Judge.BYTES) -> Row:
    return Row(
        name=f"qcow2: cut off {name}",
        build=lambda: sound()[:end],
        disk_format="qcow2",
        expected=expected,
        by=by,
    )


def _row(name: str, expected: str, build: Callable[[], bytes], by: Judge = Judge.BYTES) -> Row:
    return Row(name=f"qcow2: {name}", build=build, disk_format="qcow2", expected=expected, by=by)


_DATA_FILE = 0x44415441
_CRYPTO = 0x0537BE77
_BITMAPS = 0x23852875

GOOD: Final = (
    _bent("a sound one made by hand", ADMITTED),
    _row("version 2", ADMITTED, partial(sound, version=2)),
    _row("version 2, compressed", ADMITTED, partial(made, "qcow2", "compat=0.10")),
    _row("zstd", ADMITTED, partial(made, "qcow2", "compression_type=zstd")),
    _row("the smallest clusters", ADMITTED, partial(made, "qcow2", "cluster_size=512")),
    _row("the largest clusters", ADMITTED, partial(made, "qcow2", "cluster_size=2M")),
    _row("refcounts of one bit", ADMITTED, partial(made, "qcow2", "refcount_bits=1")),
    _row("refcounts of 64 bits", ADMITTED, partial(made, "qcow2", "refcount_bits=64")),
    _row("lazy refcounts", ADMITTED, partial(made, "qcow2", "lazy_refcounts=on")),
    _row("preallocated", ADMITTED, partial(made, "qcow2", "preallocation=metadata")),
    _bent("was open when its host died", ADMITTED, (INCOMPATIBLE, ">Q", 1)),
    _bent("features that may be ignored", ADMITTED, (80, ">Q", 1 << 40)),
    _row("bytes behind its end", ADMITTED, lambda: sound() + b"QFI\xfb" * 1000),
    _row("a leaked cluster", ADMITTED, partial(sound, (L2 + 8, ">Q", 0))),
    _row("compressed beyond measure, within the limits", ADMITTED, partial(bomb, 16)),
)

NAMES: Final = (
    _row("CVE-2015-5163 backing file", "backing-file", partial(named, b"/etc/passwd")),
    _row(
        "CVE-2015-5163 backing file, version 2",
        "backing-file",
        partial(named, b"/etc/passwd", version=2),
    ),
    _row(
        "CVE-2024-4467 json: backing file",
        "backing-file",
        partial(named, b'json:{"driver":"file","filename":"/etc/shadow"}'),
    ),
    _row("backing file over the network", "backing-file", partial(named, b"nbd://127.0.0.1:1/x")),
    _row("backing file without a name", "backing-file", partial(named, b"")),
    _bent("backing file beyond the end", "backing-file", (BACKING_AT, ">Q", 1 << 40)),
    _bent(
        "backing file with a name too long",
        "backing-file",
        (BACKING_AT, ">Q", 256),
        (BACKING_LENGTH, ">I", (1 << 32) - 1),
    ),
    _row(
        "CVE-2024-32498 data file",
        "data-file",
        partial(extended, _DATA_FILE, b"/etc/passwd", (INCOMPATIBLE, ">Q", 4)),
    ),
    _row(
        "CVE-2024-4467 json: data file",
        "data-file",
        partial(
            extended,
            _DATA_FILE,
            b'json:{"driver":"file","filename":"/etc/shadow"}',
            (INCOMPATIBLE, ">Q", 4),
        ),
    ),
    _row(
        "raw data file",
        "data-file",
        partial(
            extended, _DATA_FILE, b"/etc/passwd", (INCOMPATIBLE, ">Q", 4), (AUTOCLEAR, ">Q", 2)
        ),
    ),
    _bent("data file without a name", "data-file", (INCOMPATIBLE, ">Q", 4)),
    _row(
        "data file that no feature speaks of",
        "data-file",
        partial(extended, _DATA_FILE, b"/etc/passwd"),
    ),
)

HEADERS: Final = (
    _bent("version 0", "unknown-features", (VERSION, ">I", 0)),
    _bent("version 1", "unknown-features", (VERSION, ">I", 1)),
    _bent("version 4", "unknown-features", (VERSION, ">I", 4)),
    _bent("extended L2 entries", "unknown-features", (INCOMPATIBLE, ">Q", 16)),
    _bent("an unknown feature", "unknown-features", (INCOMPATIBLE, ">Q", 1 << 63)),
    _bent("every feature", "backing-file", (BACKING_AT, ">Q", 8), (INCOMPATIBLE, ">Q", 2**64 - 1)),
    _bent("marked corrupt", "corrupt", (INCOMPATIBLE, ">Q", 2)),
    _bent("encrypted by AES", "encrypted", (CRYPT, ">I", 1)),
    _bent("encrypted by LUKS", "encrypted", (CRYPT, ">I", 2)),
    _row("a header of encryption alone", "encrypted", partial(extended, _CRYPTO, bytes(16))),
    _bent("encrypted by who knows what", "encrypted", (CRYPT, ">I", 9)),
    _bent("clusters of 1 byte", "header", (CLUSTER_BITS, ">I", 0)),
    _bent("clusters of 256 bytes", "header", (CLUSTER_BITS, ">I", 8)),
    _bent("clusters of 4 MiB", "header", (CLUSTER_BITS, ">I", 22)),
    _bent("clusters of 2^31 bytes", "header", (CLUSTER_BITS, ">I", 31)),
    _bent("clusters of 2^(2^32) bytes", "header", (CLUSTER_BITS, ">I", 2**32 - 1)),
    _bent("refcounts of 128 bits", "header", (ORDER, ">I", 7)),
    _bent("refcounts of 2^(2^32) bits", "header", (ORDER, ">I", 2**32 - 1)),
    _bent("a header of 8 bytes", "header", (HEADER_LENGTH, ">I", 8)),
    _bent("a header longer than a cluster", "header", (HEADER_LENGTH, ">I", 2 * CLUSTER)),
    _bent("compressed by who knows what", "header", (INCOMPATIBLE, ">Q", 8), (104, ">B", 9)),
    _bent("compressed otherwise than its features say", "header", (COMPRESSION, ">B", 1)),
    _row(
        "an extension beyond the cluster",
        "header",
        partial(extended, 0x6803F857, b"", length=2**32 - 1),
    ),
)

TABLES: Final = (
    _bent("L1 on the header", "header", (L1_AT, ">Q", 0)),
    _bent("L1 between clusters", "header", (L1_AT, ">Q", L1 + 8)),
    _bent("L1 beyond the end", "truncated", (L1_AT, ">Q", 1 << 40)),
    _bent("L1 beyond any file", "truncated", (L1_AT, ">Q", 2**64 - CLUSTER)),
    _bent("L1 of 32 GiB", "truncated", (L1_ENTRIES, ">I", 2**32 - 1)),
    _bent("L1 too short for its disk", "header", (SIZE, ">Q", 4 << 20)),
    _bent("no L1", "header", (L1_ENTRIES, ">I", 0)),
    _bent("refcount table on the header", "header", (TABLE_AT, ">Q", 0)),
    _bent("refcount table between clusters", "header", (TABLE_AT, ">Q", TABLE + 1)),
    _bent("refcount table beyond the end", "truncated", (TABLE_AT, ">Q", 1 << 50)),
    _bent("refcount table of 16 TiB", "truncated", (TABLE_CLUSTERS, ">I", 2**32 - 1)),
    _bent("no refcount table", "header", (TABLE_CLUSTERS, ">I", 0)),
    _bent("L1 and refcount table in one place", "header", (L1_AT, ">Q", TABLE)),
    _found("L1 leads to itself", "corrupt", (L1, ">Q", L1 | COPIED)),
    _found("L1 leads to the header", "corrupt", (L1, ">Q", COPIED)),
    _found("L1 leads beyond the end", "corrupt", (L1, ">Q", 1 << 40)),
    _found("L1 leads between clusters", "corrupt", (L1, ">Q", (L2 + 512) | COPIED)),
    _found("L2 leads to itself", "corrupt", (L2, ">Q", L2 | COPIED)),
    _found("L2 leads to L1", "corrupt", (L2, ">Q", L1 | COPIED)),
    _found("L2 leads to the refcounts", "corrupt", (L2, ">Q", BLOCK | COPIED)),
    _found("L2 leads beyond the end", "corrupt", (L2, ">Q", (1 << 40) | COPIED)),
    _found("L2 leads between clusters", "corrupt", (L2, ">Q", (DATA + 512) | COPIED)),
    _found("L2 leads twice to one cluster", "corrupt", (L2 + 8, ">Q", DATA | COPIED)),
    _found("compressed data beyond the end", "corrupt", (L2, ">Q", COMPRESSED | (1 << 40))),
    _found("refcounts in their own table", "corrupt", (TABLE, ">Q", TABLE)),
    _found("refcounts beyond the end", "corrupt", (TABLE, ">Q", 1 << 40)),
    _found("refcounts between clusters", "corrupt", (TABLE, ">Q", BLOCK + 512)),
    _found("no refcounts", "corrupt", (TABLE, ">Q", 0)),
    _found("a refcount of 0 for data", "corrupt", (BLOCK + 10, ">H", 0)),
    _bent("2^32 snapshots", "truncated", (SNAPSHOTS, ">I", 2**32 - 1), (SNAPSHOTS_AT, ">Q", DATA)),
    _bent(
        "snapshots beyond the end", "truncated", (SNAPSHOTS, ">I", 1), (SNAPSHOTS_AT, ">Q", 1 << 40)
    ),
    _bent("snapshots on the header", "header", (SNAPSHOTS, ">I", 1)),
    _found("a snapshot that is none", "corrupt", (SNAPSHOTS, ">I", 1), (SNAPSHOTS_AT, ">Q", DATA)),
    _row(
        "bitmaps beyond the end",
        "conversion",
        partial(
            extended,
            _BITMAPS,
            struct.pack(">IIQQ", 1, 0, 64, 1 << 40),
            (AUTOCLEAR, ">Q", 1),
        ),
        Judge.QEMU_IMG,
    ),
)

CUTS: Final = (
    _cut("in its magic", 3, "format-mismatch"),
    _cut("behind its magic", 4, "truncated"),
    _cut("in the old header", 71, "truncated"),
    _cut("behind the old header", 72, "truncated"),
    _cut("in the new header", 103, "truncated"),
    _cut("behind the new header", 112, "truncated"),
    _cut("behind its first cluster", CLUSTER, "truncated"),
    _cut("in the refcount table", TABLE + 100, "truncated"),
    _cut("in the refcounts", BLOCK + 100, "truncated"),
    _cut("in L1", L1 + 7, "truncated"),
    _cut("in L2", L2 + 100, "corrupt", Judge.QEMU_IMG),
    _cut("before its data", DATA, "corrupt", Judge.QEMU_IMG),
)

BOMBS: Final = (
    _bent("a disk of 8000 TiB", "virtual-size", (SIZE, ">Q", 8000 << 40)),
    _bent("a disk of 2^63 bytes", "virtual-size", (SIZE, ">Q", 1 << 63)),
    _bent("a disk of 2^64 - 1 bytes", "virtual-size", (SIZE, ">Q", 2**64 - 1)),
    _bent("a disk of no size", "virtual-size-unknown", (SIZE, ">Q", 0)),
    _row("CVE-2013-4463 compressed", "virtual-size", partial(bomb, 128)),
    Row(
        name="qcow2: CVE-2013-4469 sparse",
        build=partial(images.qcow2, size=1 << 40, l1=(1 << 11, 3 * images.CLUSTER)),
        disk_format="qcow2",
        expected="virtual-size",
    ),
)

QCOW2: Final = (*GOOD, *NAMES, *HEADERS, *TABLES, *CUTS, *BOMBS)
