"""Images made byte by byte, and by qemu-img, for whoever looks at images."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SECTOR = 512
CLUSTER = 65536


def qemu_img(*words: object) -> None:
    """Run qemu-img, which has to succeed."""
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def made_by_qemu(path: Path, image_format: str, options: str, content: bytes) -> Path:
    """Give an image of this format at ``path``, whose disk is ``content``."""
    raw = path.with_suffix(".content")
    raw.write_bytes(content)
    words = ["-o", options] if options else []
    qemu_img("convert", "-f", "raw", "-O", image_format, *words, raw, path)
    raw.unlink()
    return path


def qcow2(  # noqa: PLR0913 - one argument for each field of the header
    *,
    version: int = 3,
    backing_offset: int = 0,
    cluster_bits: int = 16,
    size: int = 1 << 20,
    encryption: int = 0,
    l1: tuple[int, int] = (1, 3 * CLUSTER),
    refcount: tuple[int, int] = (CLUSTER, 1),
    incompatible: int = 0,
    refcount_order: int = 4,
) -> bytes:
    """Give a qcow2 header with room behind it for its tables, which are left empty.

    ``l1`` is the number of entries and the offset, ``refcount`` the offset and the clusters.
    """
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        backing_offset,
        0,
        cluster_bits,
        size,
        encryption,
        *l1,
        *refcount,
        0,
        0,
    )
    if version >= 3:
        header += struct.pack(">QQQII", incompatible, 0, 0, refcount_order, 104)
    return header.ljust(4 * CLUSTER, b"\0")


def vmdk(descriptor: bytes, *, capacity: int = 2048, footer_capacity: int | None = None) -> bytes:
    """Give a sparse VMDK of ``capacity`` sectors with this descriptor, and a footer if asked."""

    def header(sectors: int, directory: int) -> bytes:
        packed = struct.pack(
            "<4sIIQQQQIQQ", b"KDMV", 3, 0x30001, sectors, 128, 1, 20, 512, 0, directory
        )
        return packed.ljust(SECTOR, b"\0")

    at_end = 0xFFFFFFFFFFFFFFFF
    first = header(capacity, 21 if footer_capacity is None else at_end)
    body = first + descriptor.ljust(20 * SECTOR, b"\0") + bytes(4 * SECTOR)
    if footer_capacity is None:
        return body
    marker = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    return body + marker + header(footer_capacity, 21) + bytes(SECTOR)


def vmdk_descriptor(
    create_type: str = "streamOptimized",
    *,
    parent: str = "ffffffff",
    extents: tuple[str, ...] = ('RW 2048 SPARSE "disk.vmdk"',),
    more: str = "",
) -> bytes:
    """Give the text that describes a VMDK."""
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        "CID=12345678",
        f"parentCID={parent}",
        f'createType="{create_type}"',
        *extents,
        'ddb.adapterType = "ide"',
        more,
    ]
    return "\n".join(lines).encode() + b"\n"


def vhd_footer(size: int, *, kind: int = 2, current: int | None = None) -> bytes:
    """Give the footer of a VHD; ``kind`` 2 is a fixed one, 3 a dynamic one."""
    sizes = struct.pack(">QQHBB", size, size if current is None else current, 0, 0, 0)
    footer = b"conectix".ljust(40, b"\0") + sizes + struct.pack(">I", kind)
    return footer.ljust(SECTOR, b"\0")


def mbr(*, kind: int = 0x83) -> bytes:
    """Give a boot sector with one partition of this kind."""
    entry = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, kind, 0, 0, 0, 1, 2047)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def iso(*, start: bytes = b"") -> bytes:
    """Give the system area, which may begin with a boot sector, and one volume descriptor."""
    blocks = 64
    descriptor = bytearray(2048)
    descriptor[0:7] = b"\x01CD001\x01"
    descriptor[80:88] = struct.pack("<I", blocks) + struct.pack(">I", blocks)
    descriptor[128:132] = struct.pack("<H", 2048) + struct.pack(">H", 2048)
    return start.ljust(32768, b"\0") + bytes(descriptor) + bytes((blocks - 17) * 2048)
