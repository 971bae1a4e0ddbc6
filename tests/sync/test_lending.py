"""Things of which there are few, borrowed by many."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from cacheagent.sync.lending import Lending


async def test_no_more_are_made_than_there_may_be() -> None:
    """Who comes when all are out waits, and has the first that comes back."""
    lending = Lending(count().__next__, 2)
    first = await lending.take()
    await lending.take()
    waiting = asyncio.ensure_future(lending.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    lending.give(first)
    assert await waiting == first


async def test_who_came_first_is_served_first() -> None:
    """Nobody gets a second one while another waits for his first."""
    lending = Lending(count().__next__, 1)
    thing = await lending.take()
    served: list[str] = []

    async def borrow(name: str) -> None:
        mine = await lending.take()
        served.append(name)
        lending.give(mine)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(borrow(name))
            await asyncio.sleep(0)
        lending.give(thing)
        group.create_task(borrow("d"))
    assert served == ["a", "b", "c", "d"]


async def test_when_all_are_back_none_is_kept() -> None:
    """Nothing is held for a time at which nobody wants it."""
    lending = Lending(count().__next__, 2)
    one, other = await lending.take(), await lending.take()
    lending.give(one)
    assert await lending.take() == one
    lending.give(one)
    lending.give(other)
    assert await lending.take() == 2


async def test_one_that_cannot_be_made_is_not_out() -> None:
    """A failure leaves the place to the next one."""
    outcomes = iter([OSError("no memory"), None])

    def make() -> int:
        error = next(outcomes)
        if error is not None:
            raise error
        return 7

    lending = Lending(make, 1)
    with pytest.raises(OSError, match="no memory"):
        await lending.take()
    assert await lending.take() == 7


async def test_a_borrower_that_gives_up_takes_nothing() -> None:
    """What comes back is there for the others."""
    lending = Lending(count().__next__, 1)
    thing = await lending.take()
    waiting = asyncio.ensure_future(lending.take())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    lending.give(thing)
    assert await asyncio.wait_for(lending.take(), 30) == 1
