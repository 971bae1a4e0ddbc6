"""The scrubber: every base is read again now and then, before a guest meets what has rotted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import structlog

from cacheagent.errors import CacheAgentError
from cacheagent.model import VerificationOutcome
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from datetime import datetime

    from cacheagent.config import Config
    from cacheagent.model import BaseId, Verification
    from cacheagent.service.repair import Repair
    from cacheagent.service.verify import Verify

T = TypeVar("T")

POLL = 60.0
"""Seconds until the next look at the most, where no base is due."""

REST = 3600.0
"""Seconds for which a base is left alone that could not be read, or was not as it should be."""

_log = structlog.get_logger(__name__)


class Scrubber:
    """Reads bases again, one at a time: each ``scrub.interval``, and a new one that needs it.

    When each was read last stands in the catalog, so a restart loses no more than the base that
    was being read. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        verify: Verify,
        repair: Repair,
        config: Callable[[], Config],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        last_runs: MutableMapping[str, datetime | None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._verify = verify
        self._repair = repair
        self._config = config
        self._now = now
        self._clock = clock
        self._last_runs = last_runs
        self._sleep = sleep
        self._throttle = Throttle(None, clock, sleep)
        self._resting: dict[BaseId, float] = {}
        last_runs["scrubber"] = None

    async def run(self) -> None:
        """Go on for ever. A base that cannot be read is logged, and left alone for a while."""
        await self._guarded(self._repair.resume())
        while True:
            if await self.run_once() is None:
                await self._sleep(min(POLL, self._config().scrub.interval or POLL))

    async def run_once(self) -> Verification | None:
        """Read one base again, and give what came of it; None where none is due, or it failed."""
        self._last_runs["scrubber"] = self._now()
        return await self._guarded(self._scrub())

    async def _guarded(self, work: Awaitable[T]) -> T | None:
        try:
            return await work
        except (CacheAgentError, OSError) as error:
            _log.error("bases cannot be read again now", why=str(error))
            return None

    async def _scrub(self) -> Verification | None:
        now = self._clock()
        self._resting = {key: end for key, end in self._resting.items() if end > now}
        base = await self._verify.due(self._resting.keys())
        if base is None:
            return None
        self._resting[base.base_id] = now + REST
        self._throttle.rate = self._config().scrub.bytes_per_second
        done = await self._verify.verify_base(base, self._throttle)
        if done is not None and done.outcome is not VerificationOutcome.DAMAGED:
            del self._resting[base.base_id]
        return done
