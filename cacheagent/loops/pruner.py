"""The pruner: the cache keeps its bounds by itself, again and again, and whenever asked to."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from datetime import datetime

    from cacheagent.config import Config
    from cacheagent.service.eviction import Evictions
    from cacheagent.service.outcome import Pass

REST = 1.0
"""Seconds between two passes at least: a thousand deletions are not worth a thousand passes."""

_log = structlog.get_logger(__name__)


class Pruner:
    """Makes a pass each ``eviction.interval`` seconds, and soon after a nudge."""

    def __init__(
        self,
        evictions: Evictions,
        config: Callable[[], Config],
        now: Callable[[], datetime],
        last_runs: MutableMapping[str, datetime | None],
    ) -> None:
        self._evictions = evictions
        self._config = config
        self._now = now
        self._last_runs = last_runs
        self._asked: str | None = None
        self._nudged = asyncio.Event()
        last_runs["pruner"] = None

    def nudge(self, trigger: str) -> None:
        """Have a pass made soon; ``trigger`` says what for (see ``metrics.PRUNE_TRIGGERS``)."""
        self._asked = trigger
        self._nudged.set()

    async def run(self) -> None:
        """Go on for ever. A pass that fails is logged, and the next one tries again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config().eviction.interval):
                    await self._nudged.wait()
            self._nudged.clear()
            trigger, self._asked = self._asked or "interval", None
            try:
                await self.run_once(trigger)
            except (CacheAgentError, OSError) as error:
                _log.error("a pass of the pruner failed", trigger=trigger, why=str(error))
            await asyncio.sleep(REST)

    async def run_once(self, trigger: str) -> Pass:
        """Make one pass, and give what it came to."""
        done = await self._evictions.run(trigger)
        self._last_runs["pruner"] = self._now()
        return done
