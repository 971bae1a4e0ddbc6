"""A rate shared by many, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.sync.throttle import BURST_SECONDS, Throttle


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
