"""VMDK images: descriptors that name other files, and tables that cannot be.

Byte offsets are those of the header in the Virtual Disk Format 5.0 of VMware.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fakes import images
from tests.fakes.images import SECTOR, vmdk, vmdk_descriptor
from tests.hostile.table import ADMITTED, Judge, Row, made, patched

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION, FLAGS, CAPACITY, GRAIN, TEXT_AT, TEXT_LENGTH = 4, 8, 12, 20, 28, 36
ENTRIES, SPARE_DIRECTORY, DIRECTORY, OVERHEAD, COMPRESSION = 44, 48, 56, 64, 77
SPARSE, STREAM = "subformat=monolithicSparse", "subformat=streamOptimized"


def bent(*patches: tuple[int, str, object], kind: str = SPARSE) -> bytes:
    """Give a VMDK of qemu-img with fields of its header overwritten."""
    return patched(made("vmdk", kind), *patches)


def table_entry(value: int, *, level: int) -> bytes:
    """Give one whose first entry of the directory (0) or of the first grain table (1) is this."""
    image = made("vmdk", SPARSE)
    at = int.from_bytes(image[DIRECTORY : DIRECTORY + 8], "little") * SECTOR
    if level:
        at = int.from_bytes(image[at : at + 4], "little") * SECTOR
    return patched(image, (at, "<I", value))


def footer(*patches: tuple[int, str, object]) -> bytes:
    """Give a stream whose directory stands in a footer, with fields of the footer overwritten."""
    image = made("vmdk", STREAM)
    head = patched(image[:SECTOR], (DIRECTORY, "<Q", 2**64 - 1))
    marker = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    own = patched(image[:SECTOR], *patches)
    return head + image[SECTOR:] + marker + own + bytes(SECTOR)


def cut(image: Callable[[], bytes], end: int) -> bytes:
    """Give the beginning of an image; from the end, where ``end`` is below 0."""
    return image()[:end]


def retold(old: bytes, new: bytes) -> bytes:
    """Give a VMDK of qemu-img with some words of its descriptor replaced."""
    image = made("vmdk", SPARSE)
    text = image[SECTOR : 21 * SECTOR]
    told = text.rstrip(b"\0").replace(old, new).ljust(len(text), b"\0")
    return image[:SECTOR] + told + image[21 * SECTOR :]


def _row(
    name: str,
    expected: str,
    build: Callable[[], bytes],
    by: Judge = Judge.BYTES,
    disk_format: str = "vmdk",
) -> Row:
    return Row(name=f"vmdk: {name}", build=build, disk_format=disk_format, expected=expected, by=by)


def _text(name: str, expected: str, descriptor: bytes) -> Row:
    return _row(name, expected, partial(vmdk, descriptor))


FLAT = vmdk_descriptor("monolithicFlat", extents=('RW 2048 FLAT "/etc/passwd" 0',))

GOOD: Final = (
    _row("sparse", ADMITTED, partial(made, "vmdk", SPARSE)),
    _row("a stream", ADMITTED, partial(made, "vmdk", STREAM)),
    _row("a stream with a footer", ADMITTED, footer),
)

TEXTS: Final = (
    _row("CVE-2022-47951 monolithicFlat", "text-descriptor", lambda: FLAT),
    _row(
        "CVE-2022-47951 that claims to be raw", "format-mismatch", lambda: FLAT, disk_format="raw"
    ),
    _row(
        "CVE-2022-47951 behind NUL bytes, as raw",
        "format-mismatch",
        lambda: FLAT.ljust(1 << 20, b"\0"),
        disk_format="raw",
    ),
    _row(
        "CVE-2022-47951 before an ISO",
        "format-ambiguous",
        lambda: FLAT.ljust(32768, b"\0") + images.iso()[32768:],
        disk_format="iso",
    ),
    _row(
        "CVE-2022-47951 as an aki",
        "format-mismatch",
        lambda: FLAT.ljust(1 << 20, b"\0"),
        disk_format="ami",
    ),
    _row(
        "CVE-2022-47951 without its first line", "text-descriptor", lambda: FLAT.split(b"\n", 1)[1]
    ),
    _row(
        "CVE-2022-47951 behind blank lines",
        "text-descriptor",
        lambda: b"\n \r\n#\n" + FLAT.split(b"\n", 1)[1],
    ),
    _row(
        "a device of the host",
        "text-descriptor",
        lambda: vmdk_descriptor("fullDevice", extents=('RW 2048 FLAT "/dev/sda" 0',)),
    ),
    _row(
        "parts of 2 GiB",
        "text-descriptor",
        lambda: vmdk_descriptor(
            "twoGbMaxExtentSparse", extents=('RW 4 SPARSE "a"', 'RW 4 SPARSE "b"')
        ),
    ),
    _row("an ESX server disk", "inspector-failed", lambda: b"COWD".ljust(1 << 20, b"\0")),
    _text("a flat disk in a sparse one", "descriptor", FLAT),
    _text("CVE-2015-5163 parent", "backing-file", vmdk_descriptor(parent="12345678")),
    _text(
        "parent by its name",
        "backing-file",
        vmdk_descriptor(more='parentFileNameHint="/etc/passwd"'),
    ),
    _text(
        "two extents", "descriptor", vmdk_descriptor(extents=('RW 1 SPARSE "a"', 'RW 1 SPARSE "b"'))
    ),
    _text("an extent elsewhere", "descriptor", vmdk_descriptor(extents=('RW 1 SPARSE "/etc/x"',))),
    _text("no extent", "descriptor", vmdk_descriptor(extents=())),
    _text(
        "an extent behind a vertical tab",
        "descriptor",
        vmdk_descriptor(extents=('RW 1 SPARSE "a"', '\x0bRW 1 FLAT "/etc/x" 0')),
    ),
    _text("an extent of nothing", "descriptor", vmdk_descriptor(extents=("RW 2048 ZERO",))),
    _text("two types", "descriptor", vmdk_descriptor(more='createType="monolithicFlat"')),
    _text("no descriptor", "descriptor", b""),
    _text("a descriptor that is no text", "descriptor", bytes(range(1, 256))),
    _row("a descriptor without an end", "descriptor", lambda: vmdk(b"# " * (1 << 20))),
    _row(
        "a parent in the words of qemu-img",
        "backing-file",
        partial(retold, b"parentCID=ffffffff", b"parentCID=fffffffe"),
    ),
)

HEADERS: Final = (
    _row("no capacity", "header", partial(bent, (CAPACITY, "<Q", 0))),
    _row("a disk of 512 TiB", "virtual-size", partial(bent, (CAPACITY, "<Q", 1 << 40))),
    _row("a disk of 2^64 sectors", "virtual-size", partial(bent, (CAPACITY, "<Q", 2**64 - 1))),
    _row("descriptor beyond the end", "header", partial(bent, (TEXT_AT, "<Q", 1 << 40))),
    _row("descriptor in another place", "header", partial(bent, (TEXT_AT, "<Q", 2))),
    _row("descriptor of no length", "header", partial(bent, (TEXT_LENGTH, "<Q", 0))),
    _row("descriptor of 2^64 sectors", "header", partial(bent, (TEXT_LENGTH, "<Q", 2**64 - 1))),
    _row("version 9", "header", partial(bent, (VERSION, "<I", 9))),
    _row("grains of no sectors", "header", partial(bent, (GRAIN, "<Q", 0))),
    _row("grains of 2^63 sectors", "header", partial(bent, (GRAIN, "<Q", 1 << 63))),
    _row("grain tables of no entries", "header", partial(bent, (ENTRIES, "<I", 0))),
    _row("grain tables of 2^32 entries", "header", partial(bent, (ENTRIES, "<I", 2**32 - 1))),
    _row(
        "directory beyond the end",
        "truncated",
        partial(bent, (DIRECTORY, "<Q", 1 << 40), (SPARE_DIRECTORY, "<Q", 1 << 40)),
    ),
    _row(
        "directory on the header",
        "header",
        partial(bent, (DIRECTORY, "<Q", 0), (SPARE_DIRECTORY, "<Q", 0)),
    ),
    _row("directory leads beyond the end", "truncated", partial(table_entry, 2**31, level=0)),
    _row("grain beyond the end", "corrupt", partial(table_entry, 2**31, level=1), Judge.QEMU_IMG),
)

FOOTERS: Final = (
    _row("footer without a capacity", "footer", partial(footer, (CAPACITY, "<Q", 0))),
    _row("footer of a larger disk", "virtual-size", partial(footer, (CAPACITY, "<Q", 1 << 40))),
    _row("footer of another disk", "footer", partial(footer, (CAPACITY, "<Q", 8192))),
    _row("footer with other grains", "footer", partial(footer, (GRAIN, "<Q", 8))),
    _row(
        "footer with a directory beyond the end",
        "truncated",
        partial(footer, (DIRECTORY, "<Q", 1 << 40)),
    ),
    _row(
        "footer that speaks of a footer", "truncated", partial(footer, (DIRECTORY, "<Q", 2**64 - 1))
    ),
    _row("footer with another descriptor", "footer", partial(footer, (TEXT_AT, "<Q", 30))),
    _row("footer that is not there", "footer", partial(cut, footer, -SECTOR)),
    _row("footer between sectors", "footer", partial(cut, footer, -1)),
)

CUTS: Final = (
    _row("cut off in its magic", "format-mismatch", partial(cut, bent, 3)),
    _row("cut off behind its magic", "truncated", partial(cut, bent, 4)),
    _row("cut off in its header", "truncated", partial(cut, bent, 100)),
    _row("cut off in its descriptor", "descriptor", partial(cut, bent, SECTOR + 100)),
    _row("cut off in its directory", "truncated", partial(cut, bent, 21 * SECTOR + 2)),
    _row("cut off in its grains", "corrupt", partial(cut, bent, -(512 << 10)), Judge.QEMU_IMG),
)

VMDK: Final = (*GOOD, *TEXTS, *HEADERS, *FOOTERS, *CUTS)
