"""The reinspector: after an upgrade, what older rules let in is looked at by those of now."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from datetime import datetime

    from cacheagent.config import Config
    from cacheagent.model import BaseId
    from cacheagent.service.reinspect import Reinspect

POLL = 60.0
"""Seconds until the next look at the most, where nothing is to be done."""

REST = 900.0
"""Seconds for which a base is left alone of which nothing could be told."""

_log = structlog.get_logger(__name__)


class Reinspector:
    """Has bases of older rules inspected, one at a time, the one used last first.

    They are read as fast as the scrubber may read. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        reinspect: Reinspect,
        config: Callable[[], Config],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        last_runs: MutableMapping[str, datetime | None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._reinspect = reinspect
        self._config = config
        self._now = now
        self._clock = clock
        self._last_runs = last_runs
        self._throttle = Throttle(None, clock, sleep)
        self._resting: dict[BaseId, float] = {}
        last_runs["reinspector"] = None

    async def run(self) -> None:
        """Go on for ever. What one base meets does not keep the others from being inspected."""
        while True:
            if not await self.run_once():
                await self._pause()

    async def run_once(self) -> bool:
        """Inspect one base; False where none is due."""
        self._last_runs["reinspector"] = self._now()
        try:
            await self._reinspect.withdraw()
            return await self._inspect()
        except (CacheAgentError, OSError) as error:
            _log.error("bases cannot be inspected again now", why=str(error))
            return False

    async def _inspect(self) -> bool:
        now = self._clock()
        self._resting = {key: end for key, end in self._resting.items() if end > now}
        base = await self._reinspect.due(self._resting.keys())
        if base is None:
            return False
        self._resting[base.base_id] = now + REST
        self._throttle.rate = self._config().scrub.bytes_per_second
        if await self._reinspect.reinspect(base, self._throttle):
            del self._resting[base.base_id]
        return True

    async def _pause(self) -> None:
        """Wait for the next look, which comes at once where a request found a base refused."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL):
                await self._reinspect.found.wait()
        self._reinspect.found.clear()
