"""The reconciler: when it looks, and what stops it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from cacheagent.errors import CatalogError
from cacheagent.loops.reconciler import Reconciler
from tests.fakes.values import NOW

if TYPE_CHECKING:
    from datetime import datetime

EVER = 3600.0


class Counted:
    """A reconciler whose rounds are counted; it takes no rest between them."""

    def __init__(self, interval: float = EVER) -> None:
        self.service = AsyncMock()
        self.runs: dict[str, datetime | None] = {}
        self.loop = Reconciler(self.service, lambda: NOW, self.runs, interval=interval, rest=0)

    async def rounds(self, number: int) -> None:
        """Wait until so many rounds have begun."""
        async with asyncio.timeout(30):
            while self.service.check.await_count < number:  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0)


async def test_start_is_made_once_before_anybody_is_served() -> None:
    """The start has a run of its own, and what it cannot do is not hidden."""
    counted = Counted()
    assert counted.runs == {"reconciler": None}
    await counted.loop.start()
    counted.service.run.assert_awaited_once_with(NOW)
    assert counted.runs == {"reconciler": NOW}
    counted.service.run.side_effect = CatalogError("broken")
    with pytest.raises(CatalogError):
        await counted.loop.start()


async def test_it_looks_at_once_and_whenever_it_is_asked_to() -> None:
    """The start leaves what takes long; a nudge is not lost, whenever it comes."""
    counted = Counted()
    running = asyncio.ensure_future(counted.loop.run())
    await counted.rounds(1)
    counted.loop.nudge()
    await counted.rounds(2)
    # Twice before it comes to look is once.
    counted.loop.nudge()
    counted.loop.nudge()
    await counted.rounds(3)
    running.cancel()
    assert counted.runs == {"reconciler": NOW}


async def test_it_looks_again_and_again() -> None:
    """Nobody has to ask."""
    counted = Counted(interval=0)
    running = asyncio.ensure_future(counted.loop.run())
    await counted.rounds(5)
    running.cancel()


@pytest.mark.parametrize("error", [CatalogError("broken"), OSError(5, "I/O error")])
async def test_round_that_fails_does_not_end_it(error: Exception) -> None:
    """The next round tries again, and the failed one does not count as one."""
    counted = Counted(interval=0)
    counted.service.check.side_effect = [error, error, None, asyncio.CancelledError]
    with pytest.raises(asyncio.CancelledError):
        await counted.loop.run()
    assert counted.service.check.await_count == 4
    assert counted.runs == {"reconciler": NOW}
