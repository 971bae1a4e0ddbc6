"""What the header of a VDI must not say.

Offsets are those of ``VDICore.h`` of VirtualBox, bounds those of ``vdi_open`` in QEMU's
``block/vdi.c``. QEMU looks at no type: to it a differencing image is one with zeros where the
data of its parent belongs.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from cacheagent.policy.admission import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_broken = partial(Failure, "vdi")

_SECTOR = 512
_SIGNATURE_AT = 0x40
_SIGNATURE: Final = b"\x7f\x10\xda\xbe"
_VERSION_AND_TYPE = struct.Struct("<III")
"""Version, length of the header, type."""
_TABLES = struct.Struct("<II12xI4xQIIII16x16x16s16s")
"""Offsets of table and data, bytes of a sector, of the disk and of a block, bytes before a block,
blocks, blocks with data, links to other images."""
_TABLES_AT = 0x154
_VERSION = 1 << 16 | 1
_DYNAMIC, _STATIC, _UNDO, _DIFFERENCING = range(1, 5)
_BLOCK = 1 << 20
_NOBODY = bytes(16)


def is_vdi(head: bytes) -> bool:
    """Tell whether a file that begins so is a VDI."""
    return head.startswith(_SIGNATURE, _SIGNATURE_AT)


def broken_rules(head: bytes, length: int) -> Iterator[Failure]:
    """Give each rule that the header breaks, of a file that is ``length`` bytes long."""
    if len(head) < _SECTOR:
        yield _broken("truncated", "the header is cut off")
        return
    version, _, kind = _VERSION_AND_TYPE.unpack_from(head, _SIGNATURE_AT + len(_SIGNATURE))
    link, parent = _TABLES.unpack_from(head, _TABLES_AT)[-2:]
    if kind in {_UNDO, _DIFFERENCING} or link != _NOBODY or parent != _NOBODY:
        yield _broken("backing-file", "it is the difference from another image")
    elif kind not in {_DYNAMIC, _STATIC}:
        yield _broken("header", f"its type {kind} is unknown")
    if version != _VERSION:
        yield _broken("unknown-features", "its version is not 1.1")
    yield from _table_failures(head, length)


def _table_failures(head: bytes, length: int) -> Iterator[Failure]:
    fields = _TABLES.unpack_from(head, _TABLES_AT)
    table, data, sector, size, block, before, blocks, present = fields[:8]
    if sector != _SECTOR or block != _BLOCK or before:
        yield _broken("header", "its sectors or blocks have no size that they can have")
    if size > blocks * _BLOCK:
        yield _broken("header", "its table is too short for its disk")
    if table < _SECTOR or table % _SECTOR or data % _SECTOR:
        yield _broken("header", "its table or its data lies where none can")
    elif table + blocks * 4 > length:
        yield _broken("truncated", "its table ends beyond the file")
    elif table + blocks * 4 > data:
        yield _broken("header", "its table and its data lie in one place")
    elif present > blocks or data + present * _BLOCK > length:
        yield _broken("truncated", "its data ends beyond the file")
