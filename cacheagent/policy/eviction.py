"""What goes from the cache, in which order and why; what stays, and why.

One pure function from a snapshot, the operator's policy and the time to a plan. The pass carries
it out, a dry run shows it, ``why`` reads one line of it: none of them decides anything itself.

The order is LRU: the base whose last use is longest ago goes first, of equal ones the larger.
Bases that nobody is to have any more (idle for long, gone from Glance, damaged) go whether room is
needed or not. For what is short then refused images go, and then the others until it is over.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING

from cacheagent.model import Base, BaseState, CachedImage, ImageId, SpaceUsage, Standing, User
from cacheagent.policy.quarantine import REFUSED_INODES, Refused, for_room

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BASE_INODES = 2
"""Files that go with a base: itself and its manifest."""

_NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""What a time to come is told as that no calendar has: the operator may set any duration."""


class Reason(enum.StrEnum):
    """Why a base goes."""

    MAX_SIZE = "max_size"
    HIGH_WATERMARK = "high_watermark"
    MIN_FREE = "min_free"
    ROOM = "room"
    MAX_IDLE = "max_idle"
    IMAGE_GONE = "image_gone"
    DAMAGED = "damaged"
    OPERATOR = "operator"


class Rule(enum.StrEnum):
    """A rule by which a base stays that nobody uses."""

    MIN_AGE = "min_age"
    MIN_KEEP = "min_keep"
    NOT_NEEDED = "not_needed"
    NEVER_FITS = "never_fits"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseUse:
    """A base with the images that stand for it, and all who use it."""

    base: Base
    images: tuple[CachedImage, ...] = ()
    users: tuple[User, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a plan is made from.

    ``cache_bytes`` are those of bases, ingests and quarantine as measured, ``refused`` the images
    in quarantine. ``reserved`` are the bytes that whatever runs may still write,
    ``cache_reserved`` the part of them that becomes cache.
    """

    bases: tuple[BaseUse, ...]
    space: SpaceUsage
    cache_bytes: int
    reserved: int = 0
    cache_reserved: int = 0
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionPolicy:
    """The operator's bounds: sizes in bytes, watermarks in percent, times in seconds.

    ``max_size`` None is no bound, ``max_idle`` 0 is never.
    """

    max_size: int | None
    high_watermark: float
    low_watermark: float
    min_free: int
    min_keep: int
    min_age: float
    max_idle: float


class DemandKind(enum.Enum):
    """What somebody wants beside the bounds.

    ``ROOM``: ``size`` bytes are about to be written and must fit beside everything else; if they
    cannot, nothing goes. ``FULL``: a write found the file system full; ``size`` bytes are to be
    free beside what is. ``OPERATOR``: so many bytes are to be freed, or all that may go.
    """

    ROOM = enum.auto()
    FULL = enum.auto()
    OPERATOR = enum.auto()


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes that somebody wants, beside what the bounds ask for.

    ``cached`` tells whether what is to be written is cache, and so counts for ``max_size``.
    """

    kind: DemandKind
    size: int
    cached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A base that goes: ``frees`` is what its file takes now."""

    base: Base
    images: tuple[ImageId, ...]
    reason: Reason
    frees: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A base that stays, with everything that keeps it.

    ``wanted`` is the reason for which it would have gone. ``position`` counts from 1 in the order
    in which unused bases go, None for one in use. ``free_at`` is when ``min_age`` ends to hold it,
    ``idle_at`` when it goes for being idle if nobody uses it until then.
    """

    base: Base
    images: tuple[ImageId, ...]
    users: tuple[User, ...]
    rules: tuple[Rule, ...]
    wanted: Reason | None
    position: int | None
    free_at: datetime | None
    idle_at: datetime | None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Bytes that a bound or a demand asks for; ``hard`` ones have to be met, others are tried."""

    reason: Reason
    size: int
    hard: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionPlan:
    """What goes, in order, and what stays; and whether that is enough.

    ``drop`` are refused images, which go before the bases. ``needed_bytes`` is the largest
    shortage, ``unmet_bytes`` what is left of the hard ones when all that goes has gone,
    ``unmet_reason`` whose they are. ``unmet_inodes`` is the same for files. Where bases stay since
    all would not be enough (``NEVER_FITS``), both tell what were left without them.
    """

    evict: tuple[Eviction, ...]
    stay: tuple[Stay, ...]
    needed_bytes: int
    unmet_bytes: int
    unmet_inodes: int
    unmet_reason: Reason | None = None
    drop: tuple[Refused, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """What goes, in bytes."""
        return sum(each.allocated for each in self.drop) + sum(each.frees for each in self.evict)


def plan_eviction(
    snapshot: Snapshot, policy: EvictionPolicy, now: datetime, demand: Demand | None = None
) -> EvictionPlan:
    """Say what goes and what stays, for the bounds and, where given, for a demand."""
    short = tuple(shortages(snapshot, policy, demand))
    inodes = _inode_shortage(snapshot, policy)
    plan = _Plan(snapshot, policy, now, short, demand, inodes).made()
    if plan.unmet_inodes:
        # Other files take them all: throwing bases away would be to no avail.
        plan = _Plan(snapshot, policy, now, short, demand, 0).made()
        freed = BASE_INODES * len(plan.evict) + REFUSED_INODES * len(plan.drop)
        plan = replace(plan, unmet_inodes=max(0, inodes - freed))
    if demand is not None and demand.kind is DemandKind.ROOM and plan.unmet_bytes:
        return _nothing(plan)
    return plan


def last_use(base: Base, now: datetime) -> datetime:
    """Give the last use of the base; a time to come, after the clock was set back, is now."""
    return min(max(base.last_used_at, base.fetched_at), now)


def watermark(percent: float, total: int) -> int:
    """Give a watermark in bytes used, of a file system of ``total`` bytes."""
    return int(total * percent / 100)


def shortages(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> Iterator[Shortage]:
    """Give what is short, each counted from the snapshot; the bases in it do not matter."""
    size, cached = _coming(demand)
    space = snapshot.space
    used = space.total - space.available
    if policy.max_size is not None:
        coming = snapshot.cache_bytes + snapshot.cache_reserved + cached
        yield from _short(Reason.MAX_SIZE, coming - policy.max_size, hard=cached == size)
    # Before what min_keep holds against: an operator may go below it, whatever else is short.
    if demand is not None and demand.kind is DemandKind.OPERATOR:
        yield from _short(Reason.OPERATOR, demand.size)
    coming = snapshot.reserved + size
    low = used - watermark(policy.low_watermark, space.total)
    high = used - watermark(policy.high_watermark, space.total)
    above = max(low if high > 0 else 0, high + coming if size else 0)
    yield from _short(Reason.HIGH_WATERMARK, above, hard=size == 0)
    if size:
        yield from _short(Reason.ROOM, coming + policy.min_free - space.available)
    elif space.available < policy.min_free:
        yield from _short(Reason.MIN_FREE, max(policy.min_free - space.available, low))
    if demand is not None and demand.kind is DemandKind.FULL:
        yield from _short(Reason.ROOM, demand.size)


def _coming(demand: Demand | None) -> tuple[int, int]:
    """Give the bytes that are about to be written, and how many of them are cache."""
    if demand is None or demand.kind is not DemandKind.ROOM:
        return 0, 0
    return demand.size, demand.size if demand.cached else 0


def _short(reason: Reason, size: int, *, hard: bool = True) -> Iterator[Shortage]:
    if size > 0:
        yield Shortage(reason, size, hard)


def _inode_shortage(snapshot: Snapshot, policy: EvictionPolicy) -> int:
    """Give the files that are missing: the share that ``min_free`` is of the bytes stays free."""
    space = snapshot.space
    if not space.inodes or not space.total:
        return 0
    share = math.ceil(space.inodes * policy.min_free / space.total)
    return max(0, min(share, space.inodes) - space.inodes_available)


class _Plan:
    """Goes through the bases in the order of eviction and decides each."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: EvictionPolicy,
        now: datetime,
        short: Sequence[Shortage],
        demand: Demand | None,
        inodes: int,
    ) -> None:
        self._policy = policy
        self._now = now
        self._shortages = short
        self._inodes = inodes
        self._refused = snapshot.refused
        self._bases = sorted(snapshot.bases, key=lambda use: _order(use.base, now))
        # What a download brings is cache as well: below min_keep counts with it.
        self._kept = snapshot.cache_bytes + _coming(demand)[1]
        self._freed = 0
        self._freed_inodes = 0
        self._position = 0
        self._evict: list[Eviction] = []
        self._stay: list[Stay] = []

    def made(self) -> EvictionPlan:
        # Those that go in any case come first: what they free, no other has to.
        for use in self._bases:
            if (reason := self._due(use)) is not None:
                self._decide(use, reason)
        needed = max((each.size for each in self._shortages), default=0)
        drop = for_room(self._refused, needed - self._freed, self._inodes - self._freed_inodes)
        self._free(sum(each.allocated for each in drop), REFUSED_INODES * len(drop))
        for use in self._bases:
            if self._due(use) is None:
                self._decide(use, self._short_of())
        hard = [each for each in self._shortages if each.hard and each.size > self._freed]
        worst = max(hard, key=attrgetter("size"), default=None)
        return EvictionPlan(
            evict=tuple(self._evict),
            stay=tuple(self._stay),
            needed_bytes=needed,
            unmet_bytes=0 if worst is None else worst.size - self._freed,
            unmet_inodes=max(0, self._inodes - self._freed_inodes),
            unmet_reason=None if worst is None else worst.reason,
            drop=drop,
        )

    def _free(self, size: int, inodes: int) -> None:
        self._freed += size
        self._kept -= size
        self._freed_inodes += inodes

    def _due(self, use: BaseUse) -> Reason | None:
        """Tell why the base goes even where there is room enough."""
        if use.base.state is BaseState.QUARANTINED:
            return Reason.DAMAGED
        if use.images and all(image.standing is not Standing.ACTIVE for image in use.images):
            return Reason.IMAGE_GONE
        idle = (self._now - last_use(use.base, self._now)).total_seconds()
        if self._policy.max_idle and idle >= self._policy.max_idle:
            return Reason.MAX_IDLE
        return None

    def _short_of(self) -> Reason | None:
        """Tell what is short still, when what was decided so far has gone."""
        for each in self._shortages:
            if each.size > self._freed:
                return each.reason
        return Reason.MIN_FREE if self._inodes > self._freed_inodes else None

    def _decide(self, use: BaseUse, wanted: Reason | None) -> None:
        rules = tuple(self._rules(use, wanted))
        if not use.users:
            self._position += 1
        if wanted is None or use.users or rules:
            self._stay.append(self._stays(use, wanted, rules))
            return
        frees = use.base.allocated
        self._free(frees, BASE_INODES)
        images = tuple(each.image.image_id for each in use.images)
        self._evict.append(Eviction(base=use.base, images=images, reason=wanted, frees=frees))

    def _rules(self, use: BaseUse, wanted: Reason | None) -> Iterator[Rule]:
        """Give the rules that keep the base, were it unused."""
        if wanted is None:
            yield Rule.NOT_NEEDED
        if self._free_at(use.base) is not None and wanted is not Reason.DAMAGED:
            yield Rule.MIN_AGE
        foreign = wanted in {Reason.HIGH_WATERMARK, Reason.MIN_FREE, Reason.ROOM}
        if foreign and self._kept - use.base.allocated < self._policy.min_keep:
            yield Rule.MIN_KEEP

    def _free_at(self, base: Base) -> datetime | None:
        """Give when ``min_age`` ends to hold the base; None where it does not hold it now."""
        end = _after(last_use(base, self._now), self._policy.min_age)
        return end if end > self._now else None

    def _stays(self, use: BaseUse, wanted: Reason | None, rules: tuple[Rule, ...]) -> Stay:
        idle = self._policy.max_idle
        return Stay(
            base=use.base,
            images=tuple(each.image.image_id for each in use.images),
            users=use.users,
            rules=rules,
            wanted=wanted,
            position=None if use.users else self._position,
            free_at=self._free_at(use.base),
            idle_at=(
                _after(last_use(use.base, self._now), idle) if idle and not use.users else None
            ),
        )


def _order(base: Base, now: datetime) -> tuple[datetime, int, str]:
    return last_use(base, now), -base.allocated, base.base_id


def _after(when: datetime, seconds: float) -> datetime:
    return _NEVER if seconds >= (_NEVER - when).total_seconds() else when + timedelta(0, seconds)


def _nothing(plan: EvictionPlan) -> EvictionPlan:
    """Give the plan of evicting nothing, since all of it would not be enough."""
    taken = {each.position for each in plan.stay}
    free = (number for number in count(1) if number not in taken)
    kept = tuple(
        Stay(
            base=each.base,
            images=each.images,
            users=(),
            rules=(Rule.NEVER_FITS,),
            wanted=each.reason,
            position=number,
            free_at=None,
            idle_at=None,
        )
        for each, number in zip(plan.evict, free, strict=False)
    )
    return replace(plan, evict=(), drop=(), stay=(*kept, *plan.stay))
