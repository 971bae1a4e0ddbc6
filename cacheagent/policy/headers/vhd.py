"""What the headers of a VHD must not say.

Offsets are those of the Virtual Hard Disk Image Format Specification of Microsoft, bounds those
of ``vpc_open`` in QEMU's ``block/vpc.c``. ``qemu-img check`` cannot check the format.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from cacheagent.policy.admission import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_broken = partial(Failure, "vhd")

_SECTOR = 512
_COOKIE: Final = b"conectix"
_HEADER = struct.Struct(">8sQQIII4x16s8x512s")
"""Cookie, next header, offset of the table, version, entries, bytes of a block, parent's id and
name."""
_HEADER_LENGTH = 1024
_HEADER_COOKIE = b"cxsparse"
_FIXED, _DYNAMIC, _DIFFERENCING = range(2, 5)
_MAX_GEOMETRY = 65535 * 16 * 255
_LONGEST_TABLE = 32 << 20
_NO_BLOCK = 0xFFFFFFFF


def footer(tail: bytes) -> bytes:
    """Give the footer of a file that ends so; nothing where it has none."""
    found = tail[-_SECTOR:]
    return found if found.startswith(_COOKIE) and len(found) == _SECTOR else b""


def is_fixed(tail: bytes) -> bool:
    """Tell whether a file that ends so is plain data with the footer of a fixed VHD."""
    return _kind(footer(tail)) == _FIXED


def size(found: bytes) -> int:
    """Give the largest size that a footer states, or its copy at the beginning; 0 without one.

    Original size, current size and geometry: QEMU chooses by the creator, so the largest counts.
    The largest geometry only means that it cannot tell the size.
    """
    if len(found) < _SECTOR:
        return 0
    original, current, cylinders, heads, sectors = struct.unpack_from(">QQHBB", found, 40)
    geometry = cylinders * heads * sectors
    if geometry == _MAX_GEOMETRY:
        geometry = 0
    return int(max(original, current, geometry * _SECTOR))


def fixed_failures(tail: bytes, length: int) -> Iterator[Failure]:
    """Give each rule that is broken by a fixed VHD of ``length`` bytes that ends so."""
    if int.from_bytes(footer(tail)[48:56], "big") > length - _SECTOR:
        yield Failure("vhd-fixed", "truncated", "it states a larger disk than it is")


def broken_rules(head: bytes, length: int) -> Iterator[Failure]:
    """Give each rule that is broken by a file of ``length`` bytes that begins as a VHD does."""
    if len(head) < _SECTOR:
        yield _broken("truncated", "the header is cut off")
        return
    kind = _kind(head)
    start = int.from_bytes(head[16:24], "big")
    if kind == _DIFFERENCING:
        yield _broken("backing-file", "it is the difference from another image")
    elif kind != _DYNAMIC:
        # A fixed one has no copy of its footer at the beginning.
        yield _broken("header", f"its type {kind} is not one that begins so")
    elif start < _SECTOR or start % _SECTOR:
        yield _broken("header", "its header lies where none can")
    elif start + _HEADER_LENGTH > length:
        yield _broken("truncated", "its header ends beyond the file")
    elif start + _HEADER_LENGTH > len(head):
        yield _broken("header", "its header is not at its beginning")
    else:
        yield from _dynamic_failures(head, start, length)


def _dynamic_failures(head: bytes, start: int, length: int) -> Iterator[Failure]:
    cookie, _, table, _, entries, block, parent, name = _HEADER.unpack_from(head, start)
    if cookie != _HEADER_COOKIE:
        yield _broken("header", "it has no header of a dynamic disk")
        return
    if parent.strip(b"\0") or name.strip(b"\0"):
        yield _broken("backing-file", "it names a parent")
    if block < _SECTOR or block & (block - 1):
        yield _broken("header", "its blocks have no size that they can have")
        return
    if entries * block < int.from_bytes(head[48:56], "big"):
        yield _broken("header", "its table is too short for its disk")
    if table % _SECTOR or table < start + _HEADER_LENGTH:
        yield _broken("header", "its table lies where none can")
    elif table + entries * 4 > length:
        yield _broken("truncated", "its table ends beyond the file")
    elif entries * 4 > _LONGEST_TABLE:
        yield _broken("header", "its table has no length that it can have")
    else:
        yield from _block_failures(head[table : table + entries * 4], block, table, length)


def _block_failures(seen: bytes, block: int, table: int, length: int) -> Iterator[Failure]:
    """Look whereto the part of the table leads that was seen; QEMU reads zeros beyond the end."""
    bitmap = -(-block // _SECTOR // 8 // _SECTOR) * _SECTOR
    entries = struct.unpack_from(f">{len(seen) // 4}I", seen)
    places = [entry * _SECTOR for entry in entries if entry != _NO_BLOCK]
    if places and max(places) + bitmap + block > length:
        yield _broken("truncated", "a block of it ends beyond the file")
    if places and min(places) < table + len(seen):
        yield _broken("header", "a block of it lies on its headers")


def _kind(found: bytes) -> int:
    return int.from_bytes(found[60:64], "big")
