"""Passes of eviction: a snapshot is taken, the policy plans, the plan is carried out or shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import spare
from cacheagent.errors import DiskFullError
from cacheagent.model import BaseState, User
from cacheagent.policy.eviction import (
    BaseUse,
    Demand,
    DemandKind,
    Eviction,
    EvictionPlan,
    Reason,
    plan_eviction,
)
from cacheagent.service.outcome import Outcome, Pass, refusal
from cacheagent.service.quarantine import Quarantine
from cacheagent.service.removal import Removal, Skipped
from cacheagent.service.use import OUTSIDE
from cacheagent.sync.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheagent.model import Base, BaseId, CachedImage
    from cacheagent.policy.eviction import Snapshot
    from cacheagent.policy.quarantine import Refused
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.use import Use

ROUNDS = 3
"""Plans that one pass makes at most: each without what the proof before found in use."""

SETTLING = 0.3
"""Seconds that a file system gets to show what was freed; others may take it meanwhile."""

_log = structlog.get_logger(__name__)


class Evictions:
    """Plans, and carries plans out. One pass runs at a time."""

    def __init__(self, parts: Parts, *, bases: Bases, use: Use) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._room = parts.room
        self._metrics = parts.metrics
        self._events = parts.events
        self._bounds = parts.bounds
        self._now = parts.now
        self._clock = parts.clock
        self._use = use
        self._quarantine = Quarantine(parts)
        self._removal = Removal(parts, bases=bases, use=use)
        self._one = asyncio.Lock()
        self._full: SingleFlight[Demand, Pass] = SingleFlight()
        self.outcome = Outcome(parts)
        parts.room.evict_with(self.make_room)

    async def plan(self, demand: Demand | None = None) -> EvictionPlan:
        """Say what a pass would do now; nothing is changed."""
        snapshot = await self._snapshot(await self._uses())
        plan = plan_eviction(snapshot, self._bounds(), self._now(), demand)
        overdue = await self._quarantine.overdue()
        return replace(plan, drop=tuple(dict.fromkeys((*overdue, *plan.drop))))

    async def make_room(self, demand: Demand) -> None:
        """Free what is asked for.

        Raises:
            InsufficientSpaceError: it cannot be; for room that is wanted beforehand nothing goes.

        """
        full = demand.kind is DemandKind.FULL
        if full:
            # Many find a file system full at the same time: one pass tells for all of them.
            done, _ = await self._full.run(demand, lambda: self.run("full", demand))
        else:
            done = await self.run("room", demand)
        if done.plan.unmet_bytes and not (full and (done.evicted or done.dropped)):
            raise refusal(demand, done, self._bounds())

    async def run(self, trigger: str, demand: Demand | None = None) -> Pass:
        """Make one pass; ``trigger`` is one of ``metrics.PRUNE_TRIGGERS``.

        Raises:
            CacheAgentError: why it could not be made; what had gone is gone.

        """
        async with self._one:
            result = "failed"
            with self._metrics.prune_duration_seconds.time():
                try:
                    done = await self._run(demand)
                    result = "unmet" if done.plan.unmet_bytes else "done"
                finally:
                    self._metrics.prune_runs_total.labels(trigger=trigger, result=result).inc()
            self.outcome.tell(trigger, demand, done)
            return done

    async def evict(self, base: Base, reason: Reason) -> tuple[User, ...]:
        """Evict one base whatever the rules say, unless it is in use; give who uses it.

        Nothing means that it is gone.
        """
        async with self._one:
            # A pass that was waited for may have changed it.
            row = await self._catalog.base(base.base_id)
            if row is None:
                return ()
            images = await self._catalog.images_of(row.base_id)
            eviction = Eviction(
                base=row,
                images=tuple(each.image.image_id for each in images),
                reason=reason,
                frees=row.allocated,
            )
            gone, skipped = await self._removal.remove([eviction])
        if gone or not skipped:
            return ()
        return skipped[0].users

    async def _run(self, demand: Demand | None) -> Pass:
        before = (await self._store.usage()).available
        dropped = [*await self._quarantine.trim()]
        evicted: list[Eviction] = []
        skipped: dict[BaseId, Skipped] = {}
        plan = await self._plan_anew(demand)
        for _ in range(ROUNDS):
            await self._quarantine.drop(plan.drop)
            dropped += plan.drop
            gone, stayed = await self._removal.remove(plan.evict)
            evicted += gone
            skipped |= {each.eviction.base.base_id: each for each in stayed}
            if not stayed:
                break
            demand = _left_of(demand, gone, plan.drop)
            plan = await self._plan_anew(demand)
        await self._store.run(spare.keep, self._store.layout.spare)
        expected = sum(each.frees for each in evicted) + sum(each.allocated for each in dropped)
        freed = await self._freed(before, expected)
        return Pass(
            plan=plan,
            evicted=tuple(evicted),
            dropped=tuple(dropped),
            skipped=tuple(skipped.values()),
            freed_bytes=freed,
        )

    async def _freed(self, before: int, expected: int) -> int:
        """Measure what has come free; XFS gives the blocks of a removed file back a little later.

        (Linux, ``fs/xfs/xfs_icache.c``: inodes are inactivated in the background.)
        """
        free = (await self._store.usage()).available - before
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLING):
                while expected and free < expected:
                    await asyncio.sleep(SETTLING / 30)
                    free = (await self._store.usage()).available - before
        return max(0, free)

    async def _plan_anew(self, demand: Demand | None) -> EvictionPlan:
        """Plan, and note in the catalog who was seen using what."""
        uses = await self._uses()
        now = self._now()
        seen = [each.base.base_id for each in uses if _seen_outside(each.users)]
        ahead = any(max(each.base.last_used_at, each.base.fetched_at) > now for each in uses)
        # On a file system that is full this waits: what is in use stays anyhow.
        with contextlib.suppress(DiskFullError):
            await self._catalog.drop_leases(now)
            if seen or ahead:
                await self._catalog.touch(seen, now)
                uses = await self._uses_again(uses)
        return plan_eviction(await self._snapshot(uses), self._bounds(), now, demand)

    async def _snapshot(self, uses: Sequence[BaseUse]) -> Snapshot:
        """Measure what a plan goes by."""
        refused = (await self._quarantine.contents()).refused
        return replace(await self._room.snapshot(), bases=tuple(uses), refused=refused)

    async def _uses(self) -> list[BaseUse]:
        """Give every base with all who use it."""
        bases = [base for base in await self._catalog.bases() if _may_go(base)]
        images: dict[BaseId | None, list[CachedImage]] = defaultdict(list)
        for cached in await self._catalog.images():
            images[cached.base_id].append(cached)
        users = await self._use.users(bases)
        return [
            BaseUse(base=base, images=tuple(images[base.base_id]), users=users[base.base_id])
            for base in bases
        ]

    async def _uses_again(self, uses: Sequence[BaseUse]) -> list[BaseUse]:
        """Give the same with the times of use as they stand in the catalog now."""
        bases = {base.base_id: base for base in await self._catalog.bases()}
        return [
            replace(each, base=bases[each.base.base_id])
            for each in uses
            if each.base.base_id in bases
        ]


def _may_go(base: Base) -> bool:
    """Tell whether a base is one that a plan decides; one that is EVICTING has been decided."""
    return base.state in {BaseState.READY, BaseState.QUARANTINED}


def _seen_outside(users: Sequence[User]) -> bool:
    """Tell whether somebody uses the base of whom the catalog will not learn when that ends."""
    return any(user.kind in OUTSIDE for user in users)


def _left_of(
    demand: Demand | None, gone: Sequence[Eviction], dropped: Sequence[Refused]
) -> Demand | None:
    """Give what is still to be freed; room that is wanted is measured anew anyway."""
    if demand is None or demand.kind is DemandKind.ROOM:
        return demand
    freed = sum(each.frees for each in gone) + sum(each.allocated for each in dropped)
    return replace(demand, size=max(0, demand.size - freed))
