"""Bases that are not what they were: taken out of use, and fetched anew where somebody needs them.

A QEMU that has the file open keeps what it has open. A base that comes back has the name that it
had, so templates and overlays fit it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError, ShuttingDownError
from cacheagent.model import BaseState, Caller, UserKind
from cacheagent.policy.verification import has_right_length
from cacheagent.service.events import EventKind
from cacheagent.sync.backoff import Backoff
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from cacheagent.model import Base, BaseId
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.use import Use

RETRY = Backoff(first=10.0, ceiling=3600.0)
"""How long to wait before a base that disks need is asked for again."""

PASSING = frozenset({UserKind.LEASE, UserKind.WAITER})
"""Users that ask for the image themselves when its base has gone."""

_log = structlog.get_logger(__name__)


class Repair:
    """Handles bases that are lost or damaged; ``retry`` says how often fetching anew is tried."""

    def __init__(self, parts: Parts, bases: Bases, use: Use, *, retry: Backoff = RETRY) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._background = parts.background
        self._failures = parts.metrics.scrub_failures_total
        self._events = parts.events
        self._now = parts.now
        self._bases = bases
        self._use = use
        self._retry = retry
        self._fetching: set[BaseId] = set()

    def fetching(self) -> frozenset[BaseId]:
        """Give the bases that somebody needs, and that are being fetched anew."""
        return frozenset(self._fetching)

    async def lost(self, base: Base) -> None:
        """Look again at a READY base whose file seems to have gone, or to have another length.

        One that has gone is forgotten if nobody uses it; one of another length is damaged.
        """
        async with self._bases.locks.hold(base.base_id):
            await uninterrupted(self._lost(base.base_id))

    async def damaged(self, base: Base, why: str) -> None:
        """Take a READY base out of use that is not what it was; ``why`` says how that shows.

        It goes to quarantine. Unused, it stays there until it is evicted.
        """
        async with self._bases.locks.hold(base.base_id):
            row = await self._catalog.base(base.base_id)
            # Another one may have come under its name since it was looked at.
            if row is not None and _is_ready(row) and row.fetched_at == base.fetched_at:
                await uninterrupted(self._damaged(row, why))

    async def withdraw(self, base: Base, why: str) -> None:
        """Move a READY base to quarantine that newer rules refuse, unless somebody uses it.

        A guest that runs on it goes on; its file is never taken from where it is used.
        """
        async with self._bases.locks.hold(base.base_id):
            row = await self._catalog.base(base.base_id)
            if row is None or not _is_ready(row) or row.fetched_at != base.fetched_at:
                return
            if not await self._is_needed(row):
                await uninterrupted(self._withdraw(row, why))

    async def _withdraw(self, row: Base, why: str) -> None:
        await self._catalog.set_base_state(row.base_id, BaseState.QUARANTINED)
        await self._store.quarantine_base(row.base_id, row.format)
        _log.warning("a refused base went to quarantine", base_id=row.base_id, why=why)

    async def resume(self) -> None:
        """Go on fetching the damaged bases that somebody uses, after a start."""
        rows = [row for row in await self._catalog.bases() if row.state is BaseState.QUARANTINED]
        for row in rows:
            if await self._is_needed(row):
                self._fetch_anew(row.base_id)

    async def _lost(self, base_id: BaseId) -> None:
        row = await self._catalog.base(base_id)
        if row is None or not _is_ready(row):
            return
        length = await self._store.base_length(base_id, row.format)
        if length is None:
            self._tell(row, "its file is gone")
            await self._forget_or_fetch(row)
        elif not has_right_length(row, length):
            await self._damaged(row, f"its file is {length} bytes long")

    async def _forget_or_fetch(self, row: Base) -> None:
        """Let the row go in the steps of an eviction, unless somebody holds the base."""
        used = await self._is_needed(row)
        if used or await self._catalog.begin_eviction(row.base_id, self._now()):
            self._fetch_anew(row.base_id)
            return
        await self._store.trash_base(row.base_id, row.format)
        await self._catalog.remove_base(row.base_id)
        await self._store.drop_trashed(row.base_id, row.format)

    async def _damaged(self, row: Base, why: str) -> None:
        self._tell(row, why)
        used = await self._is_needed(row)
        await self._catalog.set_base_state(row.base_id, BaseState.QUARANTINED)
        await self._store.quarantine_base(row.base_id, row.format)
        if used:
            self._fetch_anew(row.base_id)

    def _tell(self, row: Base, why: str) -> None:
        self._failures.inc()
        _log.error("a base is not what it was", base_id=row.base_id, why=why)
        self._events.emit(EventKind.BASE_DAMAGED, base_id=row.base_id, reason=why)

    def _fetch_anew(self, base_id: BaseId) -> None:
        if base_id not in self._fetching:
            self._fetching.add(base_id)
            self._background.start(self._until_there(base_id), f"repair of base {base_id}")

    async def _until_there(self, base_id: BaseId) -> None:
        """Ask for an image of the base until it is there again, or nobody needs it."""
        failures = 0
        try:
            while not await self._tried(base_id):
                failures += 1
                await self._retry.pause(self._retry.delay(failures))
        finally:
            self._fetching.discard(base_id)

    async def _tried(self, base_id: BaseId) -> bool:
        try:
            return await self._asked(base_id)
        except (CacheAgentError, OSError) as error:
            told = {"base_id": base_id, "error": str(error)}
            _log.warning("nobody can tell whether a base is needed", **told)
            return False

    async def _asked(self, base_id: BaseId) -> bool:
        """Ask once for each image of the base; True where nothing is left to do."""
        row = await self._catalog.base(base_id)
        if row is None or not await self._is_needed(row):
            return True
        images = await self._catalog.images_of(base_id)
        if not images:
            _log.error("no image brings back a base that is needed", base_id=base_id)
            return True
        for cached in images:
            image_id = cached.image.image_id
            try:
                await self._bases.ensure(image_id, Caller())
            except ShuttingDownError:
                return True
            except (CacheAgentError, OSError) as error:
                told = {"image_id": image_id, "base_id": base_id, "error": str(error)}
                _log.warning("a base that is needed did not come", **told)
                self._events.emit(EventKind.BASE_DAMAGED, **told)
            if await self._is_there(base_id):
                _log.info("a base was fetched anew", base_id=base_id, image_id=image_id)
                return True
        return False

    async def _is_needed(self, row: Base) -> bool:
        """Tell whether somebody uses the base who does not ask for it by himself."""
        users = await self._use.proved(row)
        # Of a file that is not there it cannot be told who has it open: that is no reason here.
        file = self._store.layout.base(row.base_id, row.format)
        return any(
            user.kind not in PASSING and (user.kind, user.path) != (UserKind.DOUBT, file)
            for user in users
        )

    async def _is_there(self, base_id: BaseId) -> bool:
        row = await self._catalog.base(base_id)
        if row is None or not _is_ready(row):
            return False
        return await self._store.base_length(base_id, row.format) is not None


def _is_ready(row: Base) -> bool:
    return row.state is BaseState.READY
