"""The revalidator: what Glance deleted or deactivated is noticed though nobody asks for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping
    from datetime import datetime

    from cacheagent.config import Config
    from cacheagent.model import ImageId, Standing
    from cacheagent.service.revalidate import Revalidate

POLL = 60.0
"""Seconds until the next look at the clock, and at an interval that may have been reloaded."""

_log = structlog.get_logger(__name__)


class Revalidator:
    """Asks each ``glance.revalidate_interval`` seconds, for the first time a minute after a start.

    ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        revalidate: Revalidate,
        config: Callable[[], Config],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        last_runs: MutableMapping[str, datetime | None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._revalidate = revalidate
        self._config = config
        self._now = now
        self._clock = clock
        self._last_runs = last_runs
        self._sleep = sleep
        self._last: float | None = None
        last_runs["revalidator"] = None

    async def run(self) -> None:
        """Go on for ever. A pass that fails is logged, and the next one tries again."""
        while True:
            interval = self._config().glance.revalidate_interval
            await self._sleep(min(POLL, interval or POLL))
            if not interval or (self._last is not None and self._clock() < self._last + interval):
                continue
            self._last = self._clock()
            try:
                await self.run_once()
            except (CacheAgentError, OSError) as error:
                _log.error("cached images were not asked about", why=str(error))

    async def run_once(self) -> Mapping[ImageId, Standing]:
        """Make one pass, and give the images whose standing changed."""
        changed = await self._revalidate.run()
        self._last_runs["revalidator"] = self._now()
        return changed
