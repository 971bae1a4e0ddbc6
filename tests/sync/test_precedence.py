"""Short work before long work."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from cacheagent.sync import precedence
from cacheagent.sync.precedence import PATIENCE, Precedence
from tests.fakes.longwork import StandingClock, waits

if TYPE_CHECKING:
    import pytest


async def test_long_work_waits_for_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on when the last of those that are short has ended, and not before."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one = Precedence(StandingClock())
    first, second = one.begin(), one.begin()
    first.end()
    first.end()
    assert await waits(one)
    second.end()
    await one.give_way()


async def test_work_in_a_thread_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread does for a download goes on when the short work has ended."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one, looked, order = Precedence(StandingClock()), threading.Event(), list[str]()
    turn = one.begin()

    def work() -> None:
        looked.set()
        one.give_way_in_thread()
        order.append("long")

    thread = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.to_thread(looked.wait)
    order.append("short")
    turn.end()
    await thread
    one.give_way_in_thread()
    assert order == ["short", "long"]


async def test_nothing_short_keeps_nobody_waiting() -> None:
    """Where nobody goes first, long work does not even give the loop a turn."""
    one, turned = Precedence(), asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await one.give_way()
    assert not turned.is_set()


async def test_whoever_is_woken_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next short work may have begun when the last one has just ended."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one = Precedence(StandingClock())
    turn = one.begin()
    long = asyncio.create_task(one.give_way())
    await asyncio.sleep(0)
    turn.end()
    turn = one.begin()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not long.done()
    turn.end()
    await long


async def test_what_is_not_over_soon_goes_first_no_more() -> None:
    """A request that waits for its image leaves precedence to those that are short."""
    clock, ended = StandingClock(), asyncio.Event()
    one = Precedence(clock)
    one.begin()
    # Timers of the loop come in order: this one behind that of the turn.
    asyncio.get_running_loop().call_later(PATIENCE, ended.set)
    clock.now += PATIENCE
    await ended.wait()
    assert not await waits(one)
    clock.now += PATIENCE
    turn = one.begin()
    assert await waits(one)
    turn.end()


async def test_long_work_gets_half_of_the_time() -> None:
    """However many requests come, one behind the other: downloads go on."""
    clock = StandingClock()
    one = Precedence(clock)
    turn = one.begin()
    assert await waits(one)
    clock.now += PATIENCE
    # It has gone first for as long as it may, and none of the others has come to an end.
    assert not await waits(one)
    turn.end()
    turn = one.begin()
    assert not await waits(one)
    turn.end()
    clock.now += PATIENCE / 4
    turn = one.begin()
    assert await waits(one)
    clock.now += PATIENCE / 4
    assert not await waits(one)
    turn.end()
