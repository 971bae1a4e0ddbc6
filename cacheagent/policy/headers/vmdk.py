"""What the header, the descriptor and the footer of a sparse VMDK must not say.

Offsets are those of the Virtual Disk Format 5.0 of VMware, bounds those of ``vmdk_open_vmdk4`` in
QEMU's ``block/vmdk.c``.
"""

from __future__ import annotations

import re
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from cacheagent.policy.admission import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_broken = partial(Failure, "vmdk")

_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQ")
_DIRECTORY_AT_END: Final = (1 << 64) - 1
_MOST_ENTRIES = 512
_LARGEST_DIRECTORY = 32 << 20
_DESCRIPTOR_AT = 1
_LONGEST_DESCRIPTOR = (1 << 20) // _SECTOR
_VERSIONS = range(1, 4)

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


def broken_rules(head: bytes, tail: bytes, length: int) -> Iterator[Failure]:
    """Give each rule that a file of ``length`` bytes with this beginning and end breaks."""
    if len(head) < _SECTOR:
        yield _broken("truncated", "the header is cut off")
        return
    # QEMU takes a header without a capacity for that of a text descriptor, and opens the files
    # that the extents name.
    if not _capacity(head):
        yield _broken("header", "its header has no capacity")
    yield from _field_failures(head)
    yield from _descriptor_failures(head)
    if _has_footer(head):
        yield from _footer_failures(head, tail, length)
    else:
        yield from _directory_failures(head, head, length)


def footer_size(head: bytes, tail: bytes) -> int:
    """Give the bytes of the disk that the footer states; 0 where there is none.

    QEMU believes the footer, and not the header.
    """
    return _capacity(_footer(tail)) * _SECTOR if _has_footer(head) else 0


def _field_failures(head: bytes) -> Iterator[Failure]:
    version, _, _, grain, text_at, text_sectors, entries = _HEADER.unpack_from(head)[1:8]
    if version not in _VERSIONS:
        yield _broken("header", f"its version {version} is unknown")
    if text_at != _DESCRIPTOR_AT or not 0 < text_sectors <= _LONGEST_DESCRIPTOR:
        yield _broken("header", "its descriptor lies where none can")
    # At most 32 MiB to a table: what QEMU and VMware write are 128 sectors and 512 entries.
    if grain not in {1 << n for n in range(16)} or not 0 < entries <= _MOST_ENTRIES:
        yield _broken("header", "its grains or their tables have no size that they can have")


def _descriptor_failures(head: bytes) -> Iterator[Failure]:
    # QEMU looks for the parent in all the text from the descriptor's offset on, whatever length
    # the header gives it; so does this.
    given, end, _ = head[_SECTOR:].partition(b"\x00")
    text = given.lower()
    if not end:
        yield _broken("descriptor", "its descriptor has no end")
    parents = _PARENT_CID.findall(text)
    if b"parentfilenamehint" in text or any(parent != _NO_PARENT for parent in parents):
        yield _broken("backing-file", "it names a parent")
    if _STRANGE.search(given):
        yield _broken("descriptor", "its descriptor is not plain text")
    if text.count(b"createtype") != 1 or not _CREATE_TYPE.search(given):
        yield _broken("descriptor", "it is not plainly of a type that is accepted")
    if len(_EXTENT_START.findall(text)) != 1 or not _EXTENT.search(given):
        yield _broken("descriptor", "it does not have exactly one plain extent")


def _footer_failures(head: bytes, tail: bytes, length: int) -> Iterator[Failure]:
    footer = _footer(tail)
    if length % _SECTOR:  # QEMU counts the sectors of the footer from the end, rounded up
        yield _broken("footer", "its footer does not end where a sector does")
    elif not _capacity(footer):
        yield _broken("footer", "its footer has no capacity")
    elif any(
        mine != other
        for mine, other in zip(
            _HEADER.unpack_from(head)[:8], _HEADER.unpack_from(footer)[:8], strict=True
        )
    ):
        yield _broken("footer", "its footer is not the one of its header")
    else:
        yield from _directory_failures(footer, head, length)


def _directory_failures(header: bytes, head: bytes, length: int) -> Iterator[Failure]:
    """Look where the directory lies, and, where it is within ``head``, whereto it leads.

    QEMU reads zeros beyond the end of a file, so a disk without its tables is one of zeros to it.
    """
    capacity, grain, _, _, entries, _, directory = _HEADER.unpack_from(header)[3:]
    covered = grain * entries
    size = -(-capacity // covered) * 4 if covered else 0
    start = directory * _SECTOR
    if size > _LARGEST_DIRECTORY:
        return  # the disk is too large for any limit, which is another rule
    if directory == 0:
        yield _broken("header", "its directory lies on the header")
    elif start + size > length:
        yield _broken("truncated", "its directory ends beyond the file")
    seen = head[start : start + size]
    tables = struct.unpack_from(f"<{len(seen) // 4}I", seen)
    if any(table * _SECTOR + entries * 4 > length for table in tables if table):
        yield _broken("truncated", "its directory leads beyond the file")


def _has_footer(head: bytes) -> bool:
    # Only then QEMU reads a footer, which takes precedence over the header, its capacity as well.
    return int.from_bytes(head[56:64], "little") == _DIRECTORY_AT_END


def _footer(tail: bytes) -> bytes:
    footer = tail[-2 * _SECTOR : -_SECTOR]
    return footer if footer.startswith(b"KDMV") else b""


def _capacity(header: bytes) -> int:
    return int.from_bytes(header[12:20], "little")
