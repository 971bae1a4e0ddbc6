"""What the header of a qcow2 must not say.

Offsets and bounds are those of QEMU's ``docs/interop/qcow2.txt`` and of ``qcow2_do_open`` in
``block/qcow2.c``. The tables that the header leads to are ``qemu-img check``'s to follow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cacheagent.policy.admission import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_broken = partial(Failure, "qcow2")

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")
_HEADER_3_LENGTH = _HEADER.size + _HEADER_3.size
_EXTENSION = struct.Struct(">II")

_OLDER, _NEWER = _VERSIONS = 2, 3
_CORRUPT = 1 << 1
_COMPRESSION = 1 << 3
_CLUSTER_BITS = range(9, 22)
_MAX_REFCOUNT_ORDER = 6
_ZSTD = 1
_LONGEST_L1 = 32 << 20
_LONGEST_REFCOUNT_TABLE = 8 << 20
_MOST_SNAPSHOTS = 65536
_SHORTEST_SNAPSHOT = 40

_EXTENSIONS: Final = {
    0x44415441: ("data-file", "it names an external data file"),
    0x0537BE77: ("encrypted", "it has a header of encryption"),
}
"""Extensions of the header that condemn it, whatever its features say of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table that the header leads to; offset and size in bytes."""

    name: str
    offset: int
    size: int
    longest: int


def wanted(head: bytes) -> int:
    """Tell how many of its first bytes ``broken_rules`` looks at: extensions fill a cluster."""
    if len(head) < _HEADER.size:
        return _HEADER.size
    cluster_bits: int = _HEADER.unpack_from(head)[4]
    return 1 << cluster_bits if cluster_bits in _CLUSTER_BITS else _HEADER_3_LENGTH + 1


def broken_rules(head: bytes, length: int) -> Iterator[Failure]:
    """Give each rule that the header breaks, of a file that is ``length`` bytes long."""
    if len(head) < _HEADER.size:
        yield _broken("truncated", "the header is cut off")
        return
    fields = _HEADER.unpack_from(head)
    version, backing_offset, cluster_bits, encryption = fields[1], fields[2], fields[4], fields[6]
    if backing_offset:
        yield _broken("backing-file", "it names a backing file")
    if encryption:
        yield _broken("encrypted", "it is encrypted")
    if version not in _VERSIONS:
        yield _broken("unknown-features", f"its version {version} is unknown")
        return
    if version == _NEWER:
        yield from _newer_failures(head, cluster_bits)
    if cluster_bits not in _CLUSTER_BITS:
        yield _broken("header", "its cluster size is out of range")
        return
    yield from _extension_failures(head, version, min(backing_offset or length, 1 << cluster_bits))
    yield from _table_failures(_tables(head), 1 << cluster_bits, length)
    yield from _l1_failures(size=fields[5], l1_entries=fields[7], cluster_bits=cluster_bits)


def _newer_failures(head: bytes, cluster_bits: int) -> Iterator[Failure]:
    if len(head) < _HEADER_3_LENGTH:
        yield _broken("truncated", "the header is cut off")
        return
    incompatible, _, _, refcount_order, own = _HEADER_3.unpack_from(head, _HEADER.size)
    if incompatible & _CORRUPT:
        yield _broken("corrupt", "it is marked corrupt")
    if refcount_order > _MAX_REFCOUNT_ORDER:
        yield _broken("header", "its refcount width is out of range")
    if own < _HEADER_3_LENGTH or (cluster_bits in _CLUSTER_BITS and own > 1 << cluster_bits):
        yield _broken("header", "the length that it states of itself cannot be")
    compression = head[_HEADER_3_LENGTH] if own > _HEADER_3_LENGTH < len(head) else 0
    if compression not in {0, _ZSTD} or bool(compression) != bool(incompatible & _COMPRESSION):
        yield _broken("header", "its compression is unknown, or not what its features say")


def _extension_failures(head: bytes, version: int, end: int) -> Iterator[Failure]:
    """Walk through the extensions as QEMU does; the first one that is wrong ends the walk."""
    own = _HEADER.size if version == _OLDER else int.from_bytes(head[100:104], "big")
    end = min(end, len(head))
    position = own
    while position + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(head, position)
        position += _EXTENSION.size
        if kind == 0:
            return
        if kind in _EXTENSIONS:
            yield _broken(*_EXTENSIONS[kind])
            return
        if size > end - position:
            yield _broken("header", "an extension of it ends beyond its cluster")
            return
        position += (size + 7) & ~7


def _tables(head: bytes) -> list[_Table]:
    fields = _HEADER.unpack_from(head)
    l1_entries, l1_offset, refcounts_at, refcount_clusters, snapshots, snapshots_at = fields[7:]
    return [
        _Table(name="L1 table", offset=l1_offset, size=l1_entries * 8, longest=_LONGEST_L1),
        _Table(
            name="refcount table",
            offset=refcounts_at,
            # No table at all is as bad as one that begins on the header.
            size=max(refcount_clusters, 1) << fields[4],
            longest=_LONGEST_REFCOUNT_TABLE if refcount_clusters else 0,
        ),
        _Table(
            name="table of snapshots",
            offset=snapshots_at,
            size=snapshots * _SHORTEST_SNAPSHOT,
            longest=_MOST_SNAPSHOTS * _SHORTEST_SNAPSHOT,
        ),
    ]


def _table_failures(tables: list[_Table], cluster: int, length: int) -> Iterator[Failure]:
    within: list[_Table] = []
    for table in tables:
        if table.size and (table.offset == 0 or table.offset % cluster):
            yield _broken("header", f"its {table.name} lies where none can")
        if table.size and table.offset + table.size > length:
            yield _broken("truncated", f"its {table.name} ends beyond the file")
        elif table.size > table.longest:
            yield _broken("header", f"its {table.name} has no length that it can have")
        elif table.size:
            within.append(table)
    for first, second in pairwise(sorted(within, key=lambda table: table.offset)):
        if first.offset + first.size > second.offset:
            yield _broken("header", f"its {first.name} and {second.name} lie in one place")


def _l1_failures(*, size: int, l1_entries: int, cluster_bits: int) -> Iterator[Failure]:
    covered = 1 << (cluster_bits + cluster_bits - 3)
    if l1_entries < -(-size // covered):
        yield _broken("header", "its L1 table is too short for its disk")
