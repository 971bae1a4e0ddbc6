"""VDI, VHD and VHDX images: with parents, cut off, and with tables that cannot be.

Byte offsets are those of VirtualBox's ``VDICore.h``, of the Virtual Hard Disk Image Format
Specification and of [MS-VHDX].
"""

from __future__ import annotations

import struct
import uuid
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fakes.images import SECTOR
from tests.hostile.table import ADMITTED, Judge, Row, made, patched

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SMALL = "subformat=dynamic,block_size=1M"
DYNAMIC = "subformat=dynamic,force_size=on"


def vdi(*patches: tuple[int, str, object], end: int | None = None) -> bytes:
    """Give a VDI with fields overwritten, cut off at ``end``."""
    return patched(made("vdi"), *patches)[:end]


def vhd(*patches: tuple[int, str, object], end: int | None = None) -> bytes:
    """Give a dynamic VHD with fields overwritten, those of the footer in both copies."""
    image = made("vpc", DYNAMIC)
    again = tuple((at - SECTOR, layout, value) for at, layout, value in patches if 0 <= at < SECTOR)
    bent = patched(image, *patches, *again)
    return summed(summed(bent, 0), len(bent) - SECTOR)[:end]


def summed(image: bytes, footer: int) -> bytes:
    """Give the image with the right checksum in a footer, without which QEMU does not open it."""
    found = image[footer : footer + 64] + bytes(4) + image[footer + 68 : footer + SECTOR]
    return patched(image, (footer + 64, ">I", 2**32 - 1 - sum(found)))


def fixed(*patches: tuple[int, str, object]) -> bytes:
    """Give a fixed VHD with fields of its footer overwritten."""
    image = made("vpc", "subformat=fixed,force_size=on")
    bent = patched(image, *((at - SECTOR, layout, value) for at, layout, value in patches))
    return summed(bent, len(bent) - SECTOR)


def vhdx(*patches: tuple[int, str, object], end: int | None = None) -> bytes:
    """Give a VHDX with fields overwritten, cut off at ``end``."""
    return patched(made("vhdx", SMALL), *patches)[:end]


def metadata(item: str, field: int, layout: str, value: object) -> bytes:
    """Give a VHDX with a field of an item of its metadata overwritten."""
    image = made("vhdx", SMALL)
    region = image.index(b"metadata", MIB)
    entry = image.index(uuid.UUID(item).bytes_le, region)
    (offset,) = struct.unpack_from("<I", image, entry + 16)
    return patched(image, (region + offset + field, layout, value))


def region(which: str, field: int, layout: str, value: object) -> bytes:
    """Give a VHDX with a field of an entry of both region tables overwritten."""
    image = made("vhdx", SMALL)
    key = uuid.UUID(which).bytes_le
    return patched(
        image,
        *((image.index(key, start) + field, layout, value) for start in (192 << 10, 256 << 10)),
    )


def block_table(value: int) -> bytes:
    """Give a VHDX whose first block lies here."""
    image = made("vhdx", SMALL)
    entry = image.index(uuid.UUID(BAT).bytes_le, 192 << 10)
    (offset,) = struct.unpack_from("<Q", image, entry + 16)
    return patched(image, (offset, "<Q", value))


BAT = "2dc27766-f623-4200-9d64-115e9bfd4a08"
METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e"
PARAMETERS = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
VIRTUAL_SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
SECTOR_SIZE = "8141bf1d-a96f-4709-ba47-f233a8faab5f"


def _row(
    disk_format: str,
    name: str,
    expected: str,
    build: Callable[[], bytes],
    by: Judge = Judge.BYTES,
) -> Row:
    return Row(
        name=f"{disk_format}: {name}",
        build=build,
        disk_format=disk_format,
        expected=expected,
        by=by,
    )


def _vdi(name: str, expected: str, *patches: tuple[int, str, object]) -> Row:
    return _row("vdi", name, expected, partial(vdi, *patches))


def _vhd(name: str, expected: str, *patches: tuple[int, str, object]) -> Row:
    return _row("vhd", name, expected, partial(vhd, *patches))


VDI: Final = (
    _vdi("a sound one", ADMITTED),
    _row("vdi", "a static one", ADMITTED, partial(made, "vdi", "static=on")),
    _vdi("differencing by its type", "backing-file", (0x4C, "<I", 4)),
    _vdi("an undo image", "backing-file", (0x4C, "<I", 3)),
    _vdi("of no type", "header", (0x4C, "<I", 9)),
    _vdi("CVE-2015-5163 parent", "backing-file", (0x1B8, "16s", b"p" * 16)),
    _vdi("linked", "backing-file", (0x1A8, "16s", b"l" * 16)),
    _vdi("version 9", "unknown-features", (0x44, "<I", 9 << 16)),
    _vdi("table beyond the end", "truncated", (0x154, "<I", 0xFFFFFE00)),
    _vdi("table on the header", "header", (0x154, "<I", 0)),
    _vdi("table behind the data", "header", (0x158, "<I", 512)),
    _vdi("blocks beyond the end", "truncated", (0x158, "<I", 0xFFFFFE00)),
    _vdi("sectors of 1 byte", "header", (0x168, "<I", 1)),
    _vdi("blocks of 2 GiB", "header", (0x178, "<I", 1 << 31)),
    _vdi("blocks of nothing", "header", (0x178, "<I", 0)),
    _vdi("a table of 2^32 blocks", "truncated", (0x180, "<I", 2**32 - 1)),
    _vdi("fewer blocks than its disk has", "header", (0x170, "<Q", 32 * MIB)),
    _vdi("a disk of 8 EiB", "virtual-size", (0x170, "<Q", 1 << 63)),
    _vdi("a disk of no size", "virtual-size-unknown", (0x170, "<Q", 0)),
    _row(
        "vdi",
        "a block beyond the end",
        "corrupt",
        partial(vdi, (512, "<I", 1 << 20)),
        Judge.QEMU_IMG,
    ),
    _row(
        "vdi",
        "two blocks in one place",
        "corrupt",
        lambda: patched(made("vdi", "static=on"), (516, "<I", 0)),
        Judge.QEMU_IMG,
    ),
    _row("vdi", "cut off in its magic", "format-mismatch", partial(vdi, end=0x42)),
    _row("vdi", "cut off in its header", "truncated", partial(vdi, end=0x100)),
    _row("vdi", "cut off in its table", "truncated", partial(vdi, end=514)),
    _row("vdi", "cut off in its data", "truncated", partial(vdi, end=MIB)),
)

VHD: Final = (
    _vhd("a sound one", ADMITTED),
    _row("vhd", "a fixed one", ADMITTED, fixed),
    _row("vhd", "a fixed one with another size", "truncated", partial(fixed, (48, ">Q", 64 * MIB))),
    _row("vhd", "a fixed one of 8 EiB", "virtual-size", partial(fixed, (48, ">Q", 1 << 62))),
    _vhd("differencing", "backing-file", (60, ">I", 4)),
    _vhd("of no kind", "header", (60, ">I", 9)),
    _vhd("a parent behind a dynamic disk", "backing-file", (512 + 40, "16s", b"p" * 16)),
    _vhd("a parent's name alone", "backing-file", (512 + 64, "16s", "/etc/x".encode("utf-16-be"))),
    _vhd("no header where it should be", "header", (512, "8s", b"no")),
    _vhd("header beyond the end", "truncated", (16, ">Q", 1 << 40)),
    _vhd("header on the footer", "header", (16, ">Q", 0)),
    _vhd("table beyond the end", "truncated", (512 + 16, ">Q", 1 << 40)),
    _vhd("table on the header", "header", (512 + 16, ">Q", 512)),
    _vhd("a table of 2^32 blocks", "truncated", (512 + 28, ">I", 2**32 - 1)),
    _vhd("fewer blocks than its disk has", "header", (512 + 28, ">I", 1), (48, ">Q", 16 * MIB)),
    _vhd("blocks of nothing", "header", (512 + 32, ">I", 0)),
    _vhd("blocks of 3 bytes", "header", (512 + 32, ">I", 3)),
    _vhd("a block beyond the end", "truncated", (1536, ">I", 1 << 30)),
    _vhd("a block on the header", "header", (1536, ">I", 1)),
    _vhd("a disk of 8 EiB", "virtual-size", (48, ">Q", 1 << 62)),
    _row("vhd", "cut off in its magic", "format-mismatch", partial(vhd, end=4)),
    _row("vhd", "cut off behind its magic", "truncated", partial(vhd, end=8)),
    _row("vhd", "cut off in its header", "truncated", partial(vhd, end=1000)),
    _row("vhd", "cut off in its table", "truncated", partial(vhd, end=1537)),
    _row("vhd", "cut off in its data", "truncated", partial(vhd, end=MIB)),
)

_THROUGH_QEMU = Judge.QEMU_IMG
VHDX: Final = (
    _row("vhdx", "a sound one", ADMITTED, vhdx),
    _row(
        "vhdx",
        "CVE-2015-5163 parent",
        "conversion",
        partial(metadata, PARAMETERS, 4, "<I", 2),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "blocks of nothing",
        "conversion",
        partial(metadata, PARAMETERS, 0, "<I", 0),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "blocks of 3 GiB",
        "conversion",
        partial(metadata, PARAMETERS, 0, "<I", 3 << 30),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "sectors of 7 bytes",
        "conversion",
        partial(metadata, SECTOR_SIZE, 0, "<I", 7),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx", "a disk of 8 EiB", "virtual-size", partial(metadata, VIRTUAL_SIZE, 0, "<Q", 1 << 63)
    ),
    _row(
        "vhdx",
        "a disk of no size",
        "virtual-size-unknown",
        partial(metadata, VIRTUAL_SIZE, 0, "<Q", 0),
    ),
    _row(
        "vhdx",
        "metadata beyond the end",
        "incomplete",
        partial(region, METADATA, 16, "<Q", 1 << 40),
    ),
    _row(
        "vhdx",
        "table beyond the end",
        "conversion",
        partial(region, BAT, 16, "<Q", 1 << 40),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "regions in one place",
        "conversion",
        partial(region, BAT, 16, "<Q", MIB),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "a block beyond the end",
        "conversion",
        partial(block_table, (1 << 40) | 6),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "no headers",
        "conversion",
        partial(vhdx, (64 << 10, "4s", b"none"), (128 << 10, "4s", b"none")),
        _THROUGH_QEMU,
    ),
    _row(
        "vhdx",
        "no region tables",
        "inspector-failed",
        partial(vhdx, (192 << 10, "4s", b"none"), (256 << 10, "4s", b"none")),
    ),
    _row(
        "vhdx",
        "2^32 regions",
        "inspector-failed",
        partial(
            vhdx,
            ((192 << 10) + 8, "<I", 2**32 - 1),
            ((192 << 10) + 8 + (64 << 10), "<I", 2**32 - 1),
        ),
    ),
    _row("vhdx", "cut off in its magic", "format-mismatch", partial(vhdx, end=7)),
    _row("vhdx", "cut off behind its magic", "incomplete", partial(vhdx, end=8)),
    _row("vhdx", "cut off in its headers", "incomplete", partial(vhdx, end=100 << 10)),
    _row("vhdx", "cut off before its metadata", "incomplete", partial(vhdx, end=MIB)),
    _row("vhdx", "cut off in its data", "conversion", partial(vhdx, end=-MIB), _THROUGH_QEMU),
)

DISKS: Final = (*VDI, *VHD, *VHDX)
