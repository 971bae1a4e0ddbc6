"""Work in threads that costs little: its outcome, its order, and who goes away meanwhile."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cacheagent.sync.lane import CallLane, Lane, each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cacheagent.sync.lane import Ended


@pytest.fixture
async def lane() -> AsyncIterator[CallLane]:
    """Open a lane of one thread, which keeps the order."""
    made = CallLane(1, "test")
    yield made
    await made.close()


async def test_result_and_error_come_back(lane: CallLane) -> None:
    """A caller gets what the work returns or raises, from a thread that is not its own."""

    def fail() -> None:
        raise ValueError("broken")

    assert await lane.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ValueError, match="broken"):
        await lane.run(fail)


async def test_end_of_an_iterator_is_an_error_like_any_other(lane: CallLane) -> None:
    """What no future can hold reaches its caller all the same, and costs no other its outcome."""

    def exhaust() -> object:
        return next(iter(()))

    hold = threading.Event()
    given = (lane.run(hold.wait), lane.run(exhaust), lane.run(threading.get_ident))
    hold.set()
    _, exhausted, other = await asyncio.gather(*given, return_exceptions=True)
    assert isinstance(exhausted, RuntimeError)
    assert isinstance(exhausted.__cause__, StopIteration)
    assert isinstance(other, int)


async def test_one_thread_keeps_the_order(lane: CallLane) -> None:
    """What was given first is done first, and all of it is done."""
    done: list[int] = []
    await asyncio.gather(*(lane.run(partial(done.append, n)) for n in range(100)))
    assert done == list(range(100))


async def test_several_threads_work_at_the_same_time() -> None:
    """Work that waits for other work of its lane gets it."""
    lane, meeting = CallLane(2, "test"), threading.Barrier(2)
    await asyncio.gather(lane.run(meeting.wait), lane.run(meeting.wait))
    await lane.close()


async def test_who_is_cancelled_waits_for_the_end(lane: CallLane) -> None:
    """A caller that is cancelled, even twice, leaves when its work has ended, and not before."""
    begun, may_end, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        ended.append(True)

    async def call() -> None:
        await lane.run(work)

    caller = asyncio.create_task(call())
    await begun.wait()
    for _ in range(2):
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]


async def test_error_of_work_whose_caller_was_cancelled_is_nobodys(lane: CallLane) -> None:
    """The caller that was cancelled is told that, and not of the error."""
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        raise ValueError("unheard")

    async def call() -> None:
        await lane.run(work)

    caller = asyncio.create_task(call())
    await begun.wait()
    caller.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_closing_waits_for_what_was_given() -> None:
    """What was given before the end is done before it, and its outcome is delivered."""
    lane = CallLane(1, "test")
    outcome = lane.run(lambda: "done")
    await lane.close()
    assert await outcome == "done"
    with pytest.raises(RuntimeError, match="closed"):
        await lane.run(lambda: "late")


async def test_what_waits_is_taken_together() -> None:
    """A lane that takes several pieces takes what has come meanwhile, up to its bound."""
    may_begin, taken = threading.Event(), []

    def do(works: Sequence[int]) -> list[Ended]:
        may_begin.wait()
        taken.append(tuple(works))
        return [(work * 2, None) for work in works]

    lane = Lane(1, "test", do, most=3)
    outcomes = [lane.run(number) for number in range(8)]
    may_begin.set()
    closing = asyncio.create_task(lane.close())
    assert await asyncio.gather(*outcomes) == [number * 2 for number in range(8)]
    await closing
    assert [number for works in taken for number in works] == list(range(8))
    assert max(map(len, taken)) == 3


async def test_end_of_the_lane_comes_after_what_waits() -> None:
    """A lane that is closed with work left does that first, and then ends its threads."""
    may_begin = threading.Event()

    def do(works: Sequence[int]) -> list[Ended]:
        may_begin.wait()
        return [(work, None) for work in works]

    lane = Lane(1, "test", do, most=10)
    outcomes = [lane.run(number) for number in range(3)]
    closing = asyncio.create_task(lane.close())
    await asyncio.sleep(0)
    may_begin.set()
    assert await asyncio.gather(*outcomes) == [0, 1, 2]
    await closing


async def test_error_of_the_whole_is_that_of_each() -> None:
    """Where what does the work fails as a whole, each caller is told."""

    def do(works: Sequence[int]) -> list[Ended]:
        raise ValueError(len(works))

    lane = Lane(1, "test", do)
    with pytest.raises(ValueError, match="1"):
        await lane.run(0)
    await lane.close()


async def test_what_was_given_before_the_end_is_done_with_it() -> None:
    """Work that is taken together with the end of all work has its outcome when closing is over."""
    lane = Lane(1, "test", each, most=8)
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        taken.set()
        go.wait()

    holding = lane.run(hold)
    await asyncio.to_thread(taken.wait)
    last = lane.run(threading.get_ident)
    closing = asyncio.create_task(lane.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert (holding.done(), last.done()) == (True, True)
