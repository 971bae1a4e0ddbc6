"""The revalidator: when it asks, and what stops it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from cacheagent.config import parse_config
from cacheagent.errors import CatalogError
from cacheagent.loops.revalidator import POLL, Revalidator
from tests.fakes.values import NOW
from tests.service.rig import Clock

if TYPE_CHECKING:
    from datetime import datetime


class Timed:
    """A revalidator whose time passes while it sleeps; ``passes`` are the seconds of its passes."""

    def __init__(self, interval: float) -> None:
        self.config = parse_config({"glance": {"revalidate_interval": interval}})
        self.clock = Clock()
        self.started = self.clock.now
        self.passes: list[float] = []
        self.runs: dict[str, datetime | None] = {}
        self.service = AsyncMock()
        self.service.run.side_effect = self._pass
        self._end = 0.0
        self.loop = Revalidator(
            self.service, lambda: self.config, lambda: NOW, self.clock, self.runs, sleep=self._sleep
        )

    async def run(self, seconds: float) -> list[float]:
        """Let it run for so long, and give when passes were made."""
        self._end = self.clock.now + seconds
        with pytest.raises(asyncio.CancelledError):
            await self.loop.run()
        return self.passes

    def _pass(self) -> dict[object, object]:
        self.passes.append(self.clock.now - self.started)
        return {}

    async def _sleep(self, seconds: float) -> None:
        if self.clock.now + seconds > self._end:
            raise asyncio.CancelledError
        self.clock.now += seconds


async def test_it_asks_soon_after_a_start_and_then_each_interval() -> None:
    """A daemon that is restarted often asks all the same."""
    timed = Timed(3600)
    assert timed.runs == {"revalidator": None}
    assert await timed.run(8000) == [POLL, POLL + 3600, POLL + 7200]
    assert timed.runs == {"revalidator": NOW}


async def test_short_interval_is_kept() -> None:
    """The time between two looks is no bound below."""
    assert await Timed(5).run(22) == [5, 10, 15, 20]


async def test_interval_0_is_never() -> None:
    """Switched off, it asks nothing."""
    assert await Timed(0).run(100_000) == []


async def test_interval_that_is_reloaded_counts_within_a_minute() -> None:
    """Whoever switches it on need not restart the daemon."""
    timed = Timed(0)
    await timed.run(600)
    timed.config = parse_config({"glance": {"revalidate_interval": 3600}})
    assert await timed.run(100) == [660]


async def test_pass_that_fails_does_not_end_it() -> None:
    """The next one is made as if nothing had been."""
    timed = Timed(3600)
    timed.service.run.side_effect = [CatalogError("broken"), {}]
    await timed.run(3700)
    assert timed.service.run.await_count == 2
    assert timed.runs == {"revalidator": NOW}
