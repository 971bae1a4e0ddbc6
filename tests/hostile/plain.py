"""Images that Glance calls raw, ISO or Amazon's, and what hides in them; odd descriptions."""

from __future__ import annotations

import gzip
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fakes import images
from tests.hostile import disks, qcow2, vmdk
from tests.hostile.table import ADMITTED, Judge, Row, made, patched

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def gpt() -> bytes:
    """Give a disk with a GPT: its protective MBR, and the header behind it."""
    header = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
    return images.mbr(kind=0xEE) + header.ljust(MIB, b"\0")


def ext4() -> bytes:
    """Give a file system without a partition table, by the magic of its superblock."""
    return patched(bytes(MIB), (1024 + 56, "<H", 0xEF53))


def kernel(*, format_of: str = "linux") -> bytes:
    """Give a kernel as an aki has it: it begins with a boot sector, which is no partition table."""
    code = bytes(range(256)) * 2
    start = code[:510] + b"\x55\xaa" + b"HdrS" if format_of == "linux" else b"\x7fELF" + code
    return start.ljust(MIB, b"\x90")


def luks(version: int = 1) -> bytes:
    """Give the header of a volume that is encrypted."""
    return (b"LUKS\xba\xbe" + struct.pack(">H", version)).ljust(MIB, b"\0")


def inside(outer: Callable[[bytes], bytes], inner: bytes) -> bytes:
    """Give an image whose disk is another image."""
    return outer(inner)


def in_qcow2(inner: bytes) -> bytes:
    """Give a qcow2 whose disk begins with these bytes."""
    return qcow2.sound((qcow2.DATA, "4096s", inner[:4096]))


def in_vdi(inner: bytes) -> bytes:
    """Give a VDI whose disk begins with these bytes."""
    image = made("vdi")
    data = int.from_bytes(image[0x158:0x15C], "little")
    return patched(image, (data, f"{len(inner[:MIB])}s", inner[:MIB]))


def _plain(
    name: str,
    disk_format: str,
    expected: str,
    build: Callable[[], bytes],
    by: Judge = Judge.BYTES,
    container_format: str = "bare",
) -> Row:
    return Row(
        name=f"{disk_format}: {name}",
        build=build,
        disk_format=disk_format,
        expected=expected,
        by=by,
        container_format=container_format,
    )


def _amazon(name: str, disk_format: str, expected: str, build: Callable[[], bytes]) -> Row:
    return _plain(name, disk_format, expected, build, container_format=disk_format)


def _overlay() -> bytes:
    return qcow2.named(b"/etc/passwd")


GOOD: Final = (
    _plain("one byte", "raw", ADMITTED, lambda: b"x"),
    _plain("a boot sector alone", "raw", ADMITTED, lambda: bytes(510) + b"\x55\xaa"),
    _plain("an MBR", "raw", ADMITTED, lambda: images.mbr() + bytes(MIB)),
    _plain("a GPT", "raw", ADMITTED, gpt),
    _plain("a file system without partitions", "raw", ADMITTED, ext4),
    _plain("an ISO", "raw", ADMITTED, images.iso),
    _plain("a fixed VHD", "raw", ADMITTED, disks.fixed),
    _plain("a script", "raw", ADMITTED, lambda: b"#!/bin/sh\necho version=1\n" * 40),
    _plain("a qcow2 behind the first sector", "raw", ADMITTED, lambda: bytes(512) + _overlay()),
    _plain("a qcow2 in a partition", "raw", ADMITTED, lambda: images.mbr() + _overlay()),
    _plain("an ISO", "iso", ADMITTED, images.iso),
    _plain("a hybrid ISO with an MBR", "iso", ADMITTED, partial(images.iso, start=images.mbr())),
    _plain("a hybrid ISO with a GPT", "iso", ADMITTED, lambda: images.iso(start=gpt()[:1024])),
    _plain("a file system", "ami", ADMITTED, ext4),
    _amazon("a file system, in a container of its own", "ami", ADMITTED, ext4),
    _amazon("a kernel with a boot sector", "aki", ADMITTED, kernel),
    _amazon("a kernel in ELF", "aki", ADMITTED, partial(kernel, format_of="elf")),
    _amazon("a ramdisk", "ari", ADMITTED, lambda: b"\x1f\x8b\x08" + bytes(range(256)) * 8),
)

CLAIMS: Final = (
    _plain("CVE-2024-40767 a qcow2", "raw", "format-mismatch", qcow2.sound),
    _plain("CVE-2024-40767 a qcow2 with a backing file", "raw", "format-mismatch", _overlay),
    _plain(
        "CVE-2026-24708 a qcow2 that a resize would open",
        "raw",
        "format-mismatch",
        partial(qcow2.named, b"/etc/shadow", version=2),
    ),
    _plain(
        "a qcow2 of version 1",
        "raw",
        "format-mismatch",
        partial(qcow2.sound, (qcow2.VERSION, ">I", 1)),
    ),
    _plain("four bytes of a qcow2", "raw", "format-mismatch", lambda: b"QFI\xfb"),
    _plain(
        "a qcow2 with a VHD's footer",
        "vhd",
        "format-ambiguous",
        lambda: qcow2.sound() + images.vhd_footer(MIB),
    ),
    _plain(
        "a qcow2 with a VHD's footer",
        "raw",
        "format-ambiguous",
        lambda: qcow2.sound() + images.vhd_footer(qcow2.END),
    ),
    _plain("a VMDK", "raw", "format-mismatch", vmdk.bent),
    _plain("a VDI", "raw", "format-mismatch", disks.vdi),
    _plain("a VHD", "raw", "format-mismatch", disks.vhd),
    _plain("a VHDX", "raw", "format-mismatch", disks.vhdx),
    _plain("a QED", "raw", "format-mismatch", lambda: b"QED\0".ljust(MIB, b"\0")),
    _plain("a QED", "qcow2", "format-mismatch", lambda: b"QED\0".ljust(MIB, b"\0")),
    _plain("a volume of LUKS", "raw", "format-mismatch", luks),
    _plain("a volume of LUKS 2", "raw", "format-mismatch", partial(luks, 2)),
    _plain(
        "a disk of Parallels",
        "raw",
        "format-mismatch",
        lambda: b"WithoutFreeSpace".ljust(MIB, b"\0"),
    ),
    _plain(
        "a disk of Parallels, newer",
        "raw",
        "format-mismatch",
        lambda: b"WithouFreSpacExt".ljust(MIB, b"\0"),
    ),
    _amazon("a qcow2", "ami", "format-mismatch", _overlay),
    _amazon("a qcow2", "aki", "format-mismatch", _overlay),
    _amazon("a qcow2", "ari", "format-mismatch", _overlay),
    *(
        _plain("a raw disk", name, "format-mismatch", lambda: images.mbr() + bytes(MIB))
        for name in ("qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso")
    ),
    _plain("a qcow2", "vmdk", "format-mismatch", qcow2.sound),
    _plain("a qcow2", "vhdx", "format-mismatch", qcow2.sound),
    _plain("a VHD", "vhdx", "format-mismatch", disks.vhd),
    _plain(
        "a qcow2, compressed by gzip",
        "qcow2",
        "format-mismatch",
        lambda: gzip.compress(qcow2.sound(), mtime=0),
    ),
    _plain(
        "a qcow2 that is an ISO as well",
        "iso",
        "format-ambiguous",
        lambda: qcow2.sound().ljust(32768, b"\0") + images.iso()[32768:],
    ),
    _plain(
        "a qcow2 that is an ISO as well",
        "qcow2",
        "format-ambiguous",
        lambda: qcow2.sound().ljust(32768, b"\0") + images.iso()[32768:],
    ),
    _plain(
        "a qcow2 that is an ISO as well",
        "raw",
        "format-ambiguous",
        lambda: qcow2.sound().ljust(32768, b"\0") + images.iso()[32768:],
    ),
    _plain(
        "an ISO in the grains of a VMDK",
        "vmdk",
        "format-ambiguous",
        lambda: patched(vmdk.bent(), (32768, "2048s", images.iso()[32768:34816])),
    ),
    _plain("an ISO without a volume", "iso", "format-mismatch", lambda: bytes(MIB)),
    _plain("cut off before its volume", "iso", "format-mismatch", lambda: images.iso()[:32768]),
)

NESTED: Final = (
    _plain(
        "CVE-2015-5163 a disk that is an overlay",
        "qcow2",
        "nested-format",
        lambda: in_qcow2(_overlay()),
        Judge.QEMU_IMG,
    ),
    _plain(
        "CVE-2022-47951 a disk that is a descriptor",
        "qcow2",
        "nested-format",
        lambda: in_qcow2(vmdk.FLAT),
        Judge.QEMU_IMG,
    ),
    _plain(
        "a disk that is a volume of LUKS",
        "qcow2",
        "nested-format",
        lambda: in_qcow2(luks()),
        Judge.QEMU_IMG,
    ),
    _plain(
        "a disk that is an overlay",
        "vdi",
        "nested-format",
        lambda: in_vdi(_overlay()),
        Judge.QEMU_IMG,
    ),
    _plain("a disk with an MBR", "qcow2", ADMITTED, lambda: in_qcow2(images.mbr())),
)


def _described(
    name: str,
    expected: str,
    disk_format: str = "raw",
    container: str = "bare",
    **metadata: object,
) -> Row:
    return Row(
        name=f"description: {name}",
        build=lambda: bytes(MIB),
        disk_format=disk_format,
        expected=expected,
        by=Judge.DESCRIPTION,
        container_format=container,
        metadata=metadata,
    )


DESCRIPTIONS: Final = (
    _described("a format that nobody knows", "disk-format-unknown", "bochs"),
    _described("PLOOP", "disk-format-unknown", "ploop"),
    _described("a path for a format", "disk-format-unknown", "../../etc/passwd"),
    _described("qemu's name for a VHD", "disk-format-unknown", "vpc"),
    _described("a container of docker", "container-format", container="docker"),
    _described("a kernel's container around a disk", "container-format", container="aki"),
    _described("no length", "size-unknown", size=None),
    _described("nothing at all", "empty", size=0),
    _described("a length beyond the limit", "too-large", size=1 << 50),
    _described(
        "CVE-2013-4463 a disk beyond the limit", "virtual-size", "qcow2", virtual_size=1 << 50
    ),
    _described("no digest", "no-digest", os_hash_algo=None, os_hash_value=None, checksum=None),
    _described(
        "a digest of who knows what",
        "unknown-digest-algorithm",
        os_hash_algo="crc32",
        checksum=None,
    ),
)

PLAIN: Final = (*GOOD, *CLAIMS, *NESTED, *DESCRIPTIONS)
