"""What happens, told to many readers: each follows by itself, and nobody waits for it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from cacheagent.sync.broadcast import Broadcast


def _told(*items: str, capacity: int = 3) -> Broadcast[str]:
    """Give a broadcast that was told these."""
    broadcast: Broadcast[str] = Broadcast(capacity)
    for item in items:
        broadcast.tell(item)
    return broadcast


async def _rest(broadcast: Broadcast[str], after: int) -> list[tuple[int, str]]:
    """Give all that a reader gets who comes now, and stays until the end."""
    return [each async for each in broadcast.follow(after)]


async def test_what_was_told_is_numbered_from_one() -> None:
    """Numbers tell the order, and what is kept of it."""
    broadcast = _told()
    assert (broadcast.told, broadcast.oldest) == (0, 1)
    broadcast.tell("a")
    assert (broadcast.told, broadcast.oldest) == (1, 1)
    broadcast.close()
    assert await _rest(broadcast, 0) == [(1, "a")]


async def test_a_reader_goes_on_behind_what_it_knows() -> None:
    """Who comes back with a number gets what was told after it, and nothing twice."""
    broadcast = _told("a", "b", "c")
    broadcast.close()
    assert await _rest(broadcast, 2) == [(3, "c")]
    assert await _rest(broadcast, 3) == []


async def test_the_memory_is_bounded_and_a_gap_can_be_seen() -> None:
    """Only the latest are kept: a first number that is no successor tells of what is lost."""
    broadcast = _told("a", "b", "c", "d", "e")
    assert (broadcast.told, broadcast.oldest) == (5, 3)
    broadcast.close()
    assert await _rest(broadcast, 1) == [(3, "c"), (4, "d"), (5, "e")]


async def test_every_reader_gets_everything_as_it_comes() -> None:
    """Two readers that wait are both told, each at its own pace."""
    broadcast = _told()
    async with aclosing(broadcast.follow(0)) as one, aclosing(broadcast.follow(0)) as two:
        waiting = [asyncio.create_task(anext(one)), asyncio.create_task(anext(two))]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        broadcast.tell("a")
        assert await asyncio.gather(*waiting) == [(1, "a"), (1, "a")]
        broadcast.tell("b")
        broadcast.tell("c")
        assert [await anext(one), await anext(one)] == [(2, "b"), (3, "c")]
        assert await anext(two) == (2, "b")


async def test_a_slow_reader_loses_what_was_dropped_meanwhile() -> None:
    """A reader that falls behind goes on with the oldest that is kept."""
    broadcast = _told("a", "b")
    async with aclosing(broadcast.follow(0)) as reader:
        assert await anext(reader) == (1, "a")
        for item in "cdef":
            broadcast.tell(item)
        assert await anext(reader) == (4, "d")


async def test_a_number_that_was_never_told_waits_for_its_successor() -> None:
    """A reader that names a number to come is told nothing before it."""
    broadcast = _told("a")
    async with aclosing(broadcast.follow(2)) as reader:
        waiting = asyncio.create_task(anext(reader))
        await asyncio.sleep(0)
        broadcast.tell("b")
        await asyncio.sleep(0)
        broadcast.tell("c")
        assert await waiting == (3, "c")


async def test_the_end_comes_behind_what_was_told() -> None:
    """Readers get all that was told before the end, those that wait too, and then stop."""
    broadcast = _told()
    waiting = asyncio.create_task(_rest(broadcast, 0))
    await asyncio.sleep(0)
    broadcast.tell("last")
    broadcast.close()
    assert await waiting == [(1, "last")]
    idle = asyncio.create_task(_rest(broadcast, 1))
    assert await idle == []


async def test_a_reader_that_leaves_disturbs_nobody() -> None:
    """A reader that is cancelled while it waits takes nothing from the others."""
    broadcast = _told()
    leaving = asyncio.create_task(_rest(broadcast, 0))
    staying = asyncio.create_task(_rest(broadcast, 0))
    await asyncio.sleep(0)
    leaving.cancel()
    broadcast.tell("a")
    broadcast.close()
    assert await staying == [(1, "a")]
    assert (await asyncio.gather(leaving, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )
