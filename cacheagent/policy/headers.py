"""What the first and the last bytes of an image say, beyond what oslo.utils looks at.

Pure functions over bytes, so that hostile headers can be thrown at them by the thousand. Byte
offsets are those of the specifications: ``docs/interop/qcow2.rst`` of QEMU, the Virtual Hard
Disk Image Format Specification of Microsoft, the Virtual Disk Format 5.0 of VMware.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cacheagent.policy.admission import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_LENGTH: Final = 1 << 20
"""Bytes of the beginning that ``examine`` wants: QEMU reads no longer VMDK descriptor."""

TAIL_LENGTH: Final = 1536
"""Bytes of the end that ``examine`` wants: the last three sectors, a VMDK's footer."""

_SECTOR = 512
_MAGICS: Final = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"conectix", "vhd"),
    (b"vhdxfile", "vhdx"),
    (b"QED\x00", "qed"),
    (b"LUKS\xba\xbe", "luks"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
)

# What QEMU's own probe takes for a VMDK descriptor: comments and blank lines, then a version.
_VERSION_LINE = re.compile(rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n")
_DESCRIPTOR_COMMENT = re.compile(rb"#\s*disk\s*descriptorfile", re.IGNORECASE)

# QEMU and oslo.utils read a descriptor in different ways, so only what both understand alike is
# let in. QEMU takes whitespace of any kind, across lines too, between the words of an extent.
_STRANGE = re.compile(rb"[^\t\n\r\x20-\x7e]")
_CREATE_TYPE = re.compile(
    rb'^createType="(?:monolithicSparse|streamOptimized)"[ \t]*\r?$', re.MULTILINE
)
_EXTENT_START = re.compile(rb"^[ \t\r]*(?:rw|rdonly|noaccess)\b", re.MULTILINE)
_EXTENT = re.compile(rb'^(?:RW|RDONLY) [0-9]{1,19} SPARSE "[^"/\n\r]+"[ \t]*\r?$', re.MULTILINE)
_PARENT_CID = re.compile(rb"parentcid[ \t]*=[ \t]*([^\s]*)")
_NO_PARENT = b"ffffffff"
_VMDK_DIRECTORY_AT_END = (1 << 64) - 1

_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQI")
_QCOW2_V3 = struct.Struct(">QQQI")
_QCOW2_CORRUPT = 1 << 1
_QCOW2_CLUSTER_BITS = range(9, 22)
_QCOW2_MAX_REFCOUNT_ORDER = 6
_VHD_FIXED = 2
_VHD_MAX_GEOMETRY = 65535 * 16 * 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What stands in the headers: formats, broken rules, and the largest size stated, or 0."""

    formats: frozenset[str]
    failures: tuple[Failure, ...]
    virtual_size: int


def examine(head: bytes, tail: bytes, length: int) -> Seen:
    """Look at the first ``HEAD_LENGTH`` and the last ``TAIL_LENGTH`` of ``length`` bytes.

    Never raises for whatever the bytes are.
    """
    formats = {name for magic, name in _MAGICS if head.startswith(magic)}
    failures: list[Failure] = []
    virtual_size = 0
    if "qcow2" in formats:
        failures += _qcow2_failures(head, length)
    if head.startswith(b"KDMV"):
        failures += _vmdk_failures(head, tail, length)
        virtual_size = _vmdk_footer_capacity(tail) * _SECTOR if _has_vmdk_footer(head) else 0
    if _is_text_descriptor(head):
        formats.add("vmdk")
        failures.append(_failure("vmdk", "text-descriptor", "it only names other files"))
    footer = _vhd_footer(tail)
    if "vhd" in formats:
        virtual_size = max(virtual_size, _vhd_size(head), _vhd_size(footer))
    elif int.from_bytes(footer[60:64], "big") == _VHD_FIXED:
        formats.add("vhd-fixed")
        virtual_size = max(virtual_size, _vhd_size(footer))
    return Seen(formats=frozenset(formats), failures=tuple(failures), virtual_size=virtual_size)


def _failure(name: str, rule: str, message: str) -> Failure:
    return Failure(format=name, rule=rule, message=message)


def _qcow2_failures(head: bytes, length: int) -> Iterator[Failure]:
    if len(head) < _QCOW2_HEADER.size:
        yield _failure("qcow2", "truncated", "the header is cut off")
        return
    fields = _QCOW2_HEADER.unpack_from(head)
    version, backing_offset, cluster_bits, encryption = fields[1], fields[2], fields[4], fields[6]
    l1_entries, l1_offset, refcount_offset, refcount_clusters = fields[7:]
    if backing_offset:
        yield _failure("qcow2", "backing-file", "it names a backing file")
    if encryption:
        yield _failure("qcow2", "encrypted", "it is encrypted")
    if version != 2:  # noqa: PLR2004 - version 2 has a shorter header, without these fields
        yield from _qcow2_v3_failures(head)
    if cluster_bits not in _QCOW2_CLUSTER_BITS:
        yield _failure("qcow2", "header", "its cluster size is out of range")
        return
    for offset, size in (
        (l1_offset, l1_entries * 8),
        (refcount_offset, refcount_clusters << cluster_bits),
    ):
        if size and (offset == 0 or offset % (1 << cluster_bits)):
            yield _failure("qcow2", "header", "a table lies where none can")
        if offset + size > length:
            yield _failure("qcow2", "truncated", "a table ends beyond the file")


def _qcow2_v3_failures(head: bytes) -> Iterator[Failure]:
    if len(head) < 72 + _QCOW2_V3.size:
        yield _failure("qcow2", "truncated", "the header is cut off")
        return
    incompatible, _, _, refcount_order = _QCOW2_V3.unpack_from(head, 72)
    if incompatible & _QCOW2_CORRUPT:
        yield _failure("qcow2", "corrupt", "it is marked corrupt")
    if refcount_order > _QCOW2_MAX_REFCOUNT_ORDER:
        yield _failure("qcow2", "header", "its refcount width is out of range")


def _vmdk_failures(head: bytes, tail: bytes, length: int) -> Iterator[Failure]:
    # QEMU takes a header without a capacity for that of a text descriptor, and opens the files
    # that the extents name (vmdk_open_vmdk4 in block/vmdk.c).
    if not int.from_bytes(head[12:20], "little"):
        yield _failure("vmdk", "header", "its header has no capacity")
    yield from _vmdk_descriptor_failures(head)
    if not _has_vmdk_footer(head):
        return
    if length % _SECTOR:  # QEMU counts the sectors of the footer from the end, rounded up
        yield _failure("vmdk", "footer", "its footer does not end where a sector does")
    elif not _vmdk_footer_capacity(tail):
        yield _failure("vmdk", "footer", "its footer has no capacity")


def _vmdk_descriptor_failures(head: bytes) -> Iterator[Failure]:
    # QEMU looks for the parent in all the text from the descriptor's offset on, whatever length
    # the header gives it; so does this.
    given, end, _ = head[_SECTOR:].partition(b"\x00")
    text = given.lower()
    if not end:
        yield _failure("vmdk", "descriptor", "its descriptor has no end")
    parents = _PARENT_CID.findall(text)
    if b"parentfilenamehint" in text or any(parent != _NO_PARENT for parent in parents):
        yield _failure("vmdk", "backing-file", "it names a parent")
    if _STRANGE.search(given):
        yield _failure("vmdk", "descriptor", "its descriptor is not plain text")
    if text.count(b"createtype") != 1 or not _CREATE_TYPE.search(given):
        yield _failure("vmdk", "descriptor", "it is not plainly of a type that is accepted")
    if len(_EXTENT_START.findall(text)) != 1 or not _EXTENT.search(given):
        yield _failure("vmdk", "descriptor", "it does not have exactly one plain extent")


def _has_vmdk_footer(head: bytes) -> bool:
    # Only then QEMU reads a footer, which takes precedence over the header, its capacity as well.
    return int.from_bytes(head[56:64], "little") == _VMDK_DIRECTORY_AT_END


def _vmdk_footer_capacity(tail: bytes) -> int:
    footer = tail[-2 * _SECTOR : -_SECTOR]
    return int.from_bytes(footer[12:20], "little") if footer.startswith(b"KDMV") else 0


def _is_text_descriptor(head: bytes) -> bool:
    # NUL bytes behind the text hide it from oslo.utils, while QEMU opens the files it names.
    start = head[:65536].lstrip(b" \t\r\n")
    return bool(_DESCRIPTOR_COMMENT.match(start) or _VERSION_LINE.match(start))


def _vhd_footer(tail: bytes) -> bytes:
    footer = tail[-_SECTOR:]
    return footer if footer.startswith(b"conectix") and len(footer) == _SECTOR else b""


def _vhd_size(footer: bytes) -> int:
    # Original size, current size and geometry: QEMU chooses by the creator, so the largest counts.
    # The largest geometry only means that it cannot tell the size (block/vpc.c of QEMU).
    if len(footer) < _SECTOR:
        return 0
    original, current, cylinders, heads, sectors = struct.unpack_from(">QQHBB", footer, 40)
    geometry = cylinders * heads * sectors
    if geometry == _VHD_MAX_GEOMETRY:
        geometry = 0
    return int(max(original, current, geometry * _SECTOR))
