"""The watcher: what happens to the files is noticed at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends import inotify
from cacheagent.errors import CacheAgentError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from datetime import datetime

    from cacheagent.config import Config
    from cacheagent.service.watch import Watch

REST = 1.0
"""Seconds before all watches are made anew: a flood of events is not to be answered by another."""

_log = structlog.get_logger(__name__)


class Watcher:
    """Takes events as they come.

    Each ``eviction.interval`` seconds it looks whether a folder was mounted or has come back:
    no event tells of that.
    """

    def __init__(
        self,
        watch: Watch,
        config: Callable[[], Config],
        now: Callable[[], datetime],
        last_runs: MutableMapping[str, datetime | None],
    ) -> None:
        self._watch = watch
        self._config = config
        self._now = now
        self._last_runs = last_runs
        last_runs["watcher"] = None

    async def run(self) -> None:
        """Go on for ever. Whatever goes wrong, everything is watched and looked at anew."""
        while True:
            try:
                await self.run_once()
            except (CacheAgentError, OSError) as error:
                _log.error("the watcher failed", why=str(error))
                await asyncio.sleep(self._config().eviction.interval)
            await asyncio.sleep(REST)

    async def run_once(self) -> None:
        """Watch everything until all watches have to be made anew.

        Raises:
            CacheAgentError, OSError: it cannot go on.

        """
        async with await inotify.Watcher.open() as watcher:
            await self._watch.begin(watcher)
            self._last_runs["watcher"] = self._now()
            guarding = asyncio.create_task(self._guard(watcher))
            try:
                async with contextlib.aclosing(watcher.events()) as batches:
                    async for events in batches:
                        if not await self._watch.take(watcher, events):
                            break
            finally:
                guarding.cancel()
                await asyncio.wait({guarding})

    async def _guard(self, watcher: inotify.Watcher) -> None:
        """End the events when a folder is another one than that which is watched."""
        while not await self._watch.changed():
            self._last_runs["watcher"] = self._now()
            await asyncio.sleep(self._config().eviction.interval)
        self._watch.doubt()
        watcher.close()
