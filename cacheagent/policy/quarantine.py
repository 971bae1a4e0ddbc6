"""Which refused images stay in quarantine, and which go.

They are kept for people to look at, and for nothing else: within the operator's bounds, the newest
of each image alone, and only for as long as nothing else wants the room.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from cacheagent.policy.layout import RefusedName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

MOST = 1000
"""Files that are kept at most, however small: each costs two inodes, and a line in a list."""

REFUSED_INODES = 2
"""Files that go with a refused image: itself and its record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refused image in quarantine: what its name tells, and the bytes that it takes."""

    name: RefusedName
    allocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What lies in quarantine: refused images, and ``damaged`` bytes of bases.

    Bases go by the rules of eviction; their bytes are held against the same bound.
    """

    refused: tuple[Refused, ...] = ()
    damaged: int = 0

    @property
    def allocated(self) -> int:
        """All bytes that it takes."""
        return self.damaged + sum(each.allocated for each in self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineBounds:
    """The operator's bounds: bytes, and seconds; ``max_age`` 0 is for ever."""

    max_size: int
    max_age: float


def overdue(contents: Contents, bounds: QuarantineBounds, now: datetime) -> tuple[Refused, ...]:
    """Give what is to go in any case: older of the same image, too old, too many, too much."""
    stay = [each for each in _newest(contents.refused) if each.allocated <= bounds.max_size]
    if bounds.max_age:
        stay = [each for each in stay if (now - each.name.at).total_seconds() < bounds.max_age]
    sizes = accumulate((each.allocated for each in stay[:MOST]), initial=contents.damaged)
    next(sizes)
    kept = {each.name for each, size in zip(stay, sizes, strict=False) if size <= bounds.max_size}
    return tuple(each for each in oldest_first(contents.refused) if each.name not in kept)


def for_room(refused: Iterable[Refused], size: int, inodes: int) -> tuple[Refused, ...]:
    """Give what goes so that so many bytes and inodes come free, the oldest first; or all."""
    going: list[Refused] = []
    for each in oldest_first(refused):
        if size <= 0 and inodes <= 0:
            break
        going.append(each)
        size -= each.allocated
        inodes -= REFUSED_INODES
    return tuple(going)


def oldest_first(refused: Iterable[Refused]) -> Sequence[Refused]:
    """Give them in the order in which they go."""
    return sorted(refused, key=lambda each: (each.name.at, str(each.name)))


def _newest(refused: Iterable[Refused]) -> Iterator[Refused]:
    """Give the newest of each image, the newest of all first."""
    seen = set()
    for each in reversed(oldest_first(refused)):
        if each.name.image_id not in seen:
            seen.add(each.name.image_id)
            yield each
