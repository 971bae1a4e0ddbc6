"""The reconciler: files and catalog agree before anybody is served, and go on to agree."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from datetime import datetime

    from cacheagent.policy.drift import DriftPlan
    from cacheagent.service.reconcile import Reconcile

INTERVAL = 600.0
"""Seconds between two rounds. The watcher sees nearly everything at once; a round finds the rest,
and what it finds useless goes in the next one. It costs a look at each file's name, and a
second of one thread for 10,000 disks at worst."""

REST = 1.0
"""Seconds between two rounds at least, however often somebody asks."""

_log = structlog.get_logger(__name__)


class Reconciler:
    """Makes rows and files agree: once at the start, then again and again, and when asked to.

    ``last_runs`` is told when.
    """

    def __init__(
        self,
        reconcile: Reconcile,
        now: Callable[[], datetime],
        last_runs: MutableMapping[str, datetime | None],
        *,
        interval: float = INTERVAL,
        rest: float = REST,
    ) -> None:
        self._reconcile = reconcile
        self._now = now
        self._last_runs = last_runs
        self._interval = interval
        self._rest = rest
        self._nudged = asyncio.Event()
        last_runs["reconciler"] = None

    async def start(self) -> None:
        """Run once, before the first request.

        Raises:
            CacheAgentError: rows and files cannot be made to agree.

        """
        now = self._now()
        await self._reconcile.run(now)
        self._last_runs["reconciler"] = now

    def nudge(self) -> None:
        """Have a round begun soon; one that is under way may have looked too early."""
        self._nudged.set()

    async def run(self) -> None:
        """Go on for ever, at once at first: the start has left what takes long.

        What one round meets is logged, and the next one tries again.
        """
        while True:
            self._nudged.clear()
            try:
                await self.run_once(self._now())
            except (CacheAgentError, OSError) as error:
                _log.error("a round of the reconciler failed", why=str(error))
            await asyncio.sleep(self._rest)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._nudged.wait()

    async def run_once(self, now: datetime) -> DriftPlan:
        """Compare files and catalog beside the requests, mend the difference, and give it."""
        plan = await self._reconcile.check(now)
        self._last_runs["reconciler"] = now
        return plan
