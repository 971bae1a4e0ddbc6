"""Small caches to plan for: a file system of 1000 bytes, and bases of 100."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cacheagent.model import (
    BaseState,
    CachedImage,
    SpaceUsage,
    Standing,
    User,
    UserKind,
)
from cacheagent.policy.eviction import BaseUse, EvictionPolicy, Snapshot
from tests.fakes.values import NOW, base, base_id, glance_image

if TYPE_CHECKING:
    from cacheagent.policy.eviction import EvictionPlan

TOTAL = 1000
PIN = User(kind=UserKind.PIN, detail="an operator")

LAX = EvictionPolicy(
    max_size=None,
    high_watermark=100,
    low_watermark=100,
    min_free=0,
    min_keep=0,
    min_age=600,
    max_idle=0,
)
"""Bounds that ask for nothing, but that a base is ten minutes old."""


def held(
    number: int,
    *,
    size: int = 100,
    idle: timedelta = timedelta(hours=1),
    users: tuple[User, ...] = (),
    standings: tuple[Standing, ...] = (Standing.ACTIVE,),
    state: BaseState = BaseState.READY,
) -> BaseUse:
    """Give the base of this number, last used ``idle`` ago, and an image for each standing."""
    images = tuple(
        CachedImage(
            image=glance_image(10 * number + place),
            base_id=base_id(number),
            requested_at=NOW,
            standing=standing,
        )
        for place, standing in enumerate(standings)
    )
    last = NOW - idle
    row = base(number, allocated=size, last_used_at=last, fetched_at=last, state=state)
    return BaseUse(base=row, images=images, users=users)


def idle_by(minutes: float, number: int = 1, size: int = 100) -> BaseUse:
    """Give an unused base that was last used so many minutes ago."""
    return held(number, size=size, idle=timedelta(minutes=minutes))


def cache(
    *bases: BaseUse,
    available: int = 500,
    reserved: int = 0,
    cache_reserved: int = 0,
    inodes: tuple[int, int] = (0, 0),
) -> Snapshot:
    """Give a cache of these bases; ``inodes`` are all of them, and those that are left."""
    return Snapshot(
        bases=bases,
        space=SpaceUsage(
            total=TOTAL, available=available, inodes=inodes[0], inodes_available=inodes[1]
        ),
        cache_bytes=sum(each.base.allocated for each in bases),
        reserved=reserved,
        cache_reserved=cache_reserved,
    )


def numbers(plan: EvictionPlan) -> list[int]:
    """Give the numbers of the bases that go, in order."""
    return [int(each.base.base_id.partition("-")[2], 16) for each in plan.evict]


def reasons(plan: EvictionPlan) -> list[str]:
    """Give the reasons of the bases that go, in order."""
    return [each.reason.value for each in plan.evict]
