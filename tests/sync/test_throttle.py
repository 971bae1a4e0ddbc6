"""A rate shared by many, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.sync.throttle import BURST_SECONDS, Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class FakeTime:
    """A clock that goes forward when somebody sleeps, later by ``late`` than asked."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 1000.0
        self.late = late
        self.sleeps: list[float] = []

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let the others run, then be that much later."""
        self.sleeps.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds + self.late


async def test_without_a_rate_nothing_waits() -> None:
    """A throttle without a rate never sleeps, whatever is taken."""
    time = FakeTime()
    throttle = Throttle(None, time.clock, time.sleep)
    await throttle.take(1 << 40)
    assert time.sleeps == []


async def test_the_rate_holds_on_the_long_run() -> None:
    """Ten takes of a tenth of the rate take a second, less what the bucket held."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    for _ in range(11):
        await throttle.take(100)
    assert time.now - 1000.0 == pytest.approx(1.0 - BURST_SECONDS)


async def test_waking_up_late_does_not_slow_it_down() -> None:
    """What a late wake-up lost is made up for by the takes after it."""
    time = FakeTime(late=0.04)
    throttle = Throttle(1000, time.clock, time.sleep)
    for _ in range(101):
        await throttle.take(100)
    assert time.now - 1000.0 == pytest.approx(10.0, abs=0.2)


async def test_idle_time_is_no_credit_beyond_the_bucket() -> None:
    """After an hour of rest only a bucketful passes at once."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    await throttle.take(100)
    time.now += 3600
    await throttle.take(100)
    await throttle.take(100)
    assert time.sleeps == []
    await throttle.take(100)
    assert time.sleeps == [pytest.approx(0.1)]


async def test_a_take_larger_than_the_bucket_passes_whole() -> None:
    """A block larger than the bucket goes through, and the next one waits for its worth."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    await throttle.take(5000)
    await throttle.take(1)
    assert time.sleeps == [pytest.approx(5.0 - BURST_SECONDS)]


async def test_takers_are_served_in_order() -> None:
    """A small take does not overtake a large one that came before it."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    served: list[str] = []

    async def take(name: str, n: int) -> None:
        await throttle.take(n)
        served.append(name)

    await asyncio.gather(take("a", 5000), take("b", 5000), take("c", 1), take("d", 5000))
    assert served == ["a", "b", "c", "d"]


async def test_a_cancelled_taker_takes_nothing() -> None:
    """Bytes that were never let through do not delay those who come after."""
    time = FakeTime()
    forever = asyncio.Event()

    async def hang(_seconds: float) -> None:
        await forever.wait()

    throttle = Throttle(1000, time.clock, hang)
    await throttle.take(1000)
    waiting = asyncio.create_task(throttle.take(1_000_000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    time.now += 1.0
    await throttle.take(1)
    assert not forever.is_set()


async def test_a_new_rate_counts_for_those_who_come_after() -> None:
    """The rate can be changed while the throttle is in use."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    await throttle.take(1000)
    throttle.rate = 10
    await throttle.take(10)
    await throttle.take(1)
    assert time.sleeps == [pytest.approx(0.9), pytest.approx(1.0)]


class Held:
    """A clock that stands still until the test lets those who sleep go on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[float] = []
        self._go = asyncio.Event()

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait for the test; a sleep that is cancelled is over."""
        end = self.now + seconds
        self.due.append(end)
        try:
            while self.now < end:
                await self._go.wait()
        finally:
            self.due.remove(end)

    async def go_on(self) -> None:
        """Move to the end of the one sleep there is, and let all run until they wait."""
        (self.now,) = self.due
        self._go.set()
        self._go.clear()
        await settled()


async def settled() -> None:
    """Let all tasks run until they wait for something."""
    for _ in range(20):
        await asyncio.sleep(0)


class Queue:
    """Takers of one throttle, in the order they were served.

    ``leave_after`` says who is cancelled in the same moment as who is served.
    """

    def __init__(self) -> None:
        self.time = Held()
        self.throttle = Throttle(1000, self.time.clock, self.time.sleep)
        self.served: list[str] = []
        self.takers: dict[str, asyncio.Task[None]] = {}
        self.leave_after: dict[str, str] = {}

    async def empty(self) -> None:
        """Take what the bucket holds, and as much again."""
        await self.throttle.take(200)

    async def come(self, name: str, n: int, take: Callable[[int], Awaitable[None]]) -> None:
        """Let a taker queue up."""

        async def wait() -> None:
            await take(n)
            self.served.append(name)
            if name in self.leave_after:
                self.takers[self.leave_after[name]].cancel()

        self.takers[name] = asyncio.create_task(wait())
        await settled()

    async def leave(self, name: str) -> None:
        """Cancel a taker that waits."""
        self.takers[name].cancel()
        await settled()
        assert self.takers[name].cancelled()

    async def drain(self) -> list[str]:
        """Serve all who wait; give all who were ever served."""
        while self.time.due:
            await self.time.go_on()
        return self.served


async def pull(
    time: FakeTime, take: Callable[[int], Awaitable[None]], piece: int, until: float
) -> int:
    """Take one piece after the other, and give the bytes that passed before the time was up."""
    passed = 0
    while True:
        await take(piece)
        if time.now >= until:
            return passed
        passed += piece


async def test_small_pieces_get_as_many_bytes_as_large_ones() -> None:
    """The rate is shared by bytes: how many of them come at once makes no difference."""
    time = FakeTime()
    throttle = Throttle(100_000, time.clock, time.sleep)
    await throttle.take(10_000)  # all that the bucket holds
    pieces = [93, 256, 256, 17]
    passed = await asyncio.gather(
        *(pull(time, throttle.share(), piece, 1002.0) for piece in pieces)
    )
    assert sum(passed) == pytest.approx(200_000, rel=0.02)
    assert max(passed) - min(passed) <= 256 + 256


async def test_who_comes_late_gets_no_more_than_the_others_from_then_on() -> None:
    """Time before a share began, or in which it rested, is not made up for."""
    time = FakeTime()
    throttle = Throttle(100_000, time.clock, time.sleep)
    early, rested = throttle.share(), throttle.share()
    await rested(100)
    await pull(time, early, 256, 1002.0)
    takes = (early, rested, throttle.share())
    passed = await asyncio.gather(*(pull(time, take, 100, 1004.0) for take in takes))
    assert max(passed) - min(passed) <= 256 + 100


async def test_what_was_taken_long_ago_puts_nobody_behind() -> None:
    """When the bucket is full again, all begin anew."""
    time = FakeTime()
    throttle = Throttle(1000, time.clock, time.sleep)
    greedy = throttle.share()
    await greedy(1_000_000)
    time.now += 3600
    passed = await asyncio.gather(
        pull(time, throttle.share(), 10, time.now + 10), pull(time, greedy, 10, time.now + 10)
    )
    in_the_bucket = 1000 * BURST_SECONDS
    assert abs(passed[0] - passed[1]) <= in_the_bucket + 10 + 10


async def test_shares_at_one_point_are_served_as_they_came() -> None:
    """Of two that had the same, the one that has waited longer is first."""
    queue = Queue()
    await queue.empty()
    for name in "abc":
        await queue.come(name, 100, queue.throttle.share())
    assert await queue.drain() == ["a", "b", "c"]


async def test_a_share_that_is_behind_overtakes() -> None:
    """A new share does not wait for all that another one has queued, nor for its sleeper."""
    queue = Queue()
    await queue.empty()
    # The own share has had more than a new one by now.
    await queue.come("a", 100, queue.throttle.take)
    await queue.come("b", 100, queue.throttle.take)
    await queue.come("new", 100, queue.throttle.share())
    assert queue.served == []
    assert await queue.drain() == ["new", "a", "b"]
    assert queue.time.now == pytest.approx(1000.0 + 0.2 - BURST_SECONDS + 0.2)


async def test_when_the_one_who_sleeps_leaves_another_watches() -> None:
    """A taker that is cancelled holds up nobody, wherever in the queue it was."""
    queue = Queue()
    await queue.empty()
    for name in "abcd":
        await queue.come(name, 100, queue.throttle.take)
    await queue.leave("a")
    await queue.leave("c")
    assert await queue.drain() == ["b", "d"]
    assert queue.time.now == pytest.approx(1000.0 + 0.2 - BURST_SECONDS + 0.1)


async def test_one_who_was_called_and_leaves_calls_the_next() -> None:
    """A taker may be cancelled at the very moment at which its turn comes."""
    queue = Queue()
    await queue.empty()
    for name in "abc":
        await queue.come(name, 100, queue.throttle.take)
    queue.leave_after["a"] = "b"
    assert await queue.drain() == ["a", "c"]
    assert queue.takers["b"].cancelled()
    assert queue.time.now == pytest.approx(1000.0 + 0.2 - BURST_SECONDS + 0.1)


async def test_what_was_not_taken_does_not_count_for_the_share() -> None:
    """A share whose taker was cancelled is where it was before."""
    queue = Queue()
    await queue.empty()
    one, other = queue.throttle.share(), queue.throttle.share()
    await queue.come("first", 10, other)
    await queue.come("never", 1_000_000, one)
    await queue.leave("never")
    await queue.come("one", 10, one)
    await queue.come("second", 10, other)
    assert await queue.drain() == ["first", "one", "second"]


async def test_a_sleep_that_fails_is_told_and_holds_up_nobody() -> None:
    """The next taker passes as if the one that failed had never come."""
    time = FakeTime()

    async def fail(_seconds: float) -> None:
        raise OSError("no timer")

    throttle = Throttle(1000, time.clock, fail)
    await throttle.take(1000)
    with pytest.raises(OSError, match="no timer"):
        await throttle.take(1000)
    time.now += 1.0
    await throttle.take(1000)
