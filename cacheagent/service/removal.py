"""Bases go: proved unused anew under their locks, then in steps that a restart can end.

Intent first: the row says EVICTING, in the transaction that looks for disks, pins and leases. Then
the file is renamed into ``trash/``; from there on nobody can find it. What began to use it just
before the rename shows up in one more look; such a base is put back. Then the row goes, and at last
the file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError
from cacheagent.model import BaseState, User, UserKind
from cacheagent.policy.eviction import Eviction
from cacheagent.service.despite import despite_full
from cacheagent.service.events import EventKind
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from cacheagent.model import Base
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.use import Use

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A base that was to go and stays: the last look found these users."""

    eviction: Eviction
    users: tuple[User, ...]


class Removal:
    """Removes bases that a plan, or an operator, lets go."""

    def __init__(self, parts: Parts, *, bases: Bases, use: Use) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._evictions = parts.metrics.evictions_total
        self._events = parts.events
        self._now = parts.now
        self._bases = bases
        self._use = use

    async def remove(self, evictions: Sequence[Eviction]) -> tuple[list[Eviction], list[Skipped]]:
        """Let the bases go, but for those that turn out to be in use; give both."""
        busy: list[Skipped] = []
        mine: list[Eviction] = []
        async with contextlib.AsyncExitStack() as locks:
            for each in evictions:
                if self._bases.locks.held(each.base.base_id):
                    # An ingest of this content: it may take hours, and it needs the base.
                    waiter = User(kind=UserKind.WAITER, detail="it is being fetched or linked")
                    busy.append(Skipped(eviction=each, users=(waiter,)))
                else:
                    # Nobody holds it, so this does not wait, and no lock is waited for with others.
                    await locks.enter_async_context(self._bases.locks.hold(each.base.base_id))
                    mine.append(each)
            gone, skipped = await uninterrupted(self._proved(mine)) if mine else ([], [])
        return gone, [*busy, *skipped]

    async def _proved(self, evictions: Sequence[Eviction]) -> tuple[list[Eviction], list[Skipped]]:
        """Prove under the locks that nobody uses them, and look once more before they go."""
        users = await self._use.users([each.base for each in evictions])
        skipped: list[Skipped] = []
        trashed: list[Eviction] = []
        for each in evictions:
            if holders := users[each.base.base_id] or await self._told(self._begin(each.base)):
                skipped.append(Skipped(eviction=each, users=holders))
            else:
                trashed.append(each)
        late = await self._late_users(trashed)
        gone = []
        for each, found in zip(trashed, late, strict=True):
            if holders := await self._told(self._end(each, found)):
                skipped.append(Skipped(eviction=each, users=holders))
            else:
                gone.append(each)
        return gone, skipped

    async def _told(self, step: Awaitable[tuple[User, ...]]) -> tuple[User, ...]:
        """Give what the step gives; what fails for one base is a doubt, and stops no other."""
        try:
            return await step
        except (CacheAgentError, OSError) as error:
            _log.exception("a base could not be evicted")
            return (User(kind=UserKind.DOUBT, detail=str(error)),)

    async def _begin(self, base: Base) -> tuple[User, ...]:
        """Write the intent down and move the base into the trash; give who holds it after all."""
        holders = await self._intend(base)
        if not holders:
            await self._trash(base)
        return holders

    async def _end(self, eviction: Eviction, found: tuple[User, ...]) -> tuple[User, ...]:
        """Drop what lies in the trash, or put it back for those who were found in the end."""
        base = eviction.base
        # An operator may have pinned it since the intent.
        holders = found or await despite_full(
            self._store, lambda: self._catalog.end_eviction(base.base_id, self._now())
        )
        if holders:
            await self._put_back(base, holders)
        else:
            await self._drop(eviction)
        return holders

    async def _intend(self, base: Base) -> tuple[User, ...]:
        """Write down that the base goes; give who holds it after all."""
        row = await self._catalog.base(base.base_id)
        if row is None or _use_of(row) != _use_of(base):
            return (User(kind=UserKind.DOUBT, detail="it changed while the plan was made"),)
        images = await self._catalog.images_of(base.base_id)
        # From here to the transaction nothing is waited for: who comes later finds it EVICTING.
        for cached in images:
            if self._bases.waiters(cached.image.image_id):
                return (User(kind=UserKind.WAITER, detail=cached.image.image_id),)
        return await despite_full(
            self._store, lambda: self._catalog.begin_eviction(base.base_id, self._now())
        )

    async def _trash(self, base: Base) -> None:
        """Rename the base into the trash; where that fails half way, it is handed out again."""
        trash = partial(self._store.trash_base, base.base_id, base.format)
        try:
            await despite_full(self._store, trash)
        except BaseException:
            await self._restore(base)
            raise

    async def _late_users(self, trashed: Sequence[Eviction]) -> list[tuple[User, ...]]:
        # A damaged base was out of everybody's reach before, and does not lie in the trash.
        bases = [each.base for each in trashed if each.base.state is not BaseState.QUARANTINED]
        if not bases:
            return [()] * len(trashed)
        trash = self._store.layout.trashed
        try:
            found = await self._use.outside(
                {base.base_id: trash(base.base_id, base.format) for base in bases}
            )
        except Exception as error:  # noqa: BLE001 whatever it is, nobody knows who came: all have to be put back
            _log.exception("nobody can tell who uses what is about to go")
            return [(User(kind=UserKind.DOUBT, detail=str(error)),)] * len(trashed)
        return [found.get(each.base.base_id, ()) for each in trashed]

    async def _put_back(self, base: Base, users: tuple[User, ...]) -> None:
        await self._restore(base)
        _log.warning(
            "a base was put back: it came into use while it went",
            base_id=base.base_id,
            users=[user.facts() for user in users],
        )

    async def _restore(self, base: Base) -> None:
        """Let file and row be as they were before the intent, however far the steps came."""
        await despite_full(
            self._store, partial(self._store.restore_base, base.base_id, base.format)
        )
        await despite_full(
            self._store, lambda: self._catalog.set_base_state(base.base_id, base.state)
        )

    async def _drop(self, eviction: Eviction) -> None:
        """Remove the file of a base whose row has gone."""
        base = eviction.base
        if base.state is BaseState.QUARANTINED:
            await self._store.drop_quarantined(base.base_id, base.format)
        await self._store.drop_trashed(base.base_id, base.format)
        self._evictions.labels(reason=eviction.reason).inc()
        facts = {"base_id": base.base_id, "reason": eviction.reason.value, "bytes": base.allocated}
        _log.info("evicted", images=list(eviction.images), **facts)
        # One for each image: a tenant hears of its own, and of no other.
        for image_id in eviction.images or (None,):
            self._events.emit(EventKind.BASE_EVICTED, image_id=image_id, **facts)


def _use_of(base: Base) -> tuple[object, ...]:
    """Give what a plan went by: a base that was used since then is not as old as it says."""
    return base.state, base.fetched_at, base.last_used_at
