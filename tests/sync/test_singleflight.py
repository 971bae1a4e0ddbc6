"""One run per key, shared by all who want it."""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.sync.singleflight import SingleFlight, SingleFlightStatistics

if TYPE_CHECKING:
    from collections.abc import Callable


class Work:
    """Work that ends when the test says so, and counts how often it was started."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.error = error
        self.gate = asyncio.Event()
        self.winding_down = asyncio.Event()
        self.started = 0
        self.cancelled = 0

    async def __call__(self) -> str:
        """Wait for the gate; when cancelled, for the end of the winding down."""
        self.started += 1
        number = self.started
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.winding_down.wait()
            raise
        if self.error is not None:
            raise self.error
        return f"result {number}"


async def _settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def _callers(
    flight: SingleFlight[str, str], work: Work, count: int
) -> list[asyncio.Task[tuple[str, bool]]]:
    return [asyncio.create_task(flight.run("key", work)) for _ in range(count)]


async def test_one_run_for_many_callers() -> None:
    """A hundred callers of one key share one run; all but the first joined it."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    callers = _callers(flight, work, 100)
    await _settle()
    assert flight.waiters("key") == 100
    assert flight.statistics() == SingleFlightStatistics(runs=1, waiters=100)
    work.gate.set()
    results = await asyncio.gather(*callers)
    assert work.started == 1
    assert results == [("result 1", False), *[("result 1", True)] * 99]
    assert flight.statistics() == SingleFlightStatistics(runs=0, waiters=0)


async def test_keys_are_independent() -> None:
    """Each key has a run of its own."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    callers = [asyncio.create_task(flight.run(key, work)) for key in ("a", "b")]
    await _settle()
    assert flight.keys() == {"a", "b"}
    work.gate.set()
    assert await asyncio.gather(*callers) == [("result 1", False), ("result 2", False)]
    assert flight.keys() == frozenset()
    assert flight.waiters("a") == 0


async def test_a_later_call_runs_anew() -> None:
    """Nothing is remembered: a call after the end starts a run of its own."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.gate.set()
    assert await flight.run("key", work) == ("result 1", False)
    assert await flight.run("key", work) == ("result 2", False)


async def test_a_call_right_at_the_end_of_a_run_starts_anew() -> None:
    """A caller that comes when the run has just ended gets no result from before its call."""
    flight: SingleFlight[str, str] = SingleFlight()
    late: list[asyncio.Task[tuple[str, bool]]] = []

    async def first() -> str:
        # The step of this new task comes right after this run has ended, before any callback.
        late.append(asyncio.create_task(flight.run("key", second)))
        return "old"

    async def second() -> str:
        return "new"

    assert await flight.run("key", first) == ("old", False)
    assert await late[0] == ("new", False)
    assert flight.keys() == frozenset()


async def test_a_failure_is_shared() -> None:
    """Every caller gets the error of the one run, with a traceback that does not pile up."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work(error=LookupError("gone"))
    callers = _callers(flight, work, 50)
    await _settle()
    work.gate.set()
    depths = [await _depth_of_failure(caller) for caller in callers]
    assert work.started == 1
    assert max(depths) < 10


async def _depth_of_failure(caller: asyncio.Task[Any]) -> int:
    with pytest.raises(LookupError, match="gone") as caught:
        await caller
    return len(traceback.extract_tb(caught.value.__traceback__))


async def test_a_caller_that_leaves_stops_nothing_for_the_others() -> None:
    """The first caller gives up; the run that it started goes on for the second."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    first, second = _callers(flight, work, 2)
    await _settle()
    first.cancel()
    await _settle()
    assert first.cancelled()
    assert flight.waiters("key") == 1
    work.gate.set()
    assert await second == ("result 1", True)
    assert work.cancelled == 0


async def test_the_last_caller_to_leave_stops_the_run_and_waits_for_its_end() -> None:
    """A run that nobody wants is cancelled; who left last leaves only when it has wound down."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    callers = _callers(flight, work, 2)
    await _settle()
    for caller in callers:
        caller.cancel()
    await _settle()
    assert work.cancelled == 1
    assert callers[0].cancelled()
    assert not callers[1].done()
    assert flight.keys() == {"key"}
    work.winding_down.set()
    await _settle()
    assert callers[1].cancelled()
    assert flight.keys() == frozenset()


async def test_a_second_cancellation_does_not_wait_for_the_winding_down() -> None:
    """A caller that is cancelled once more goes at once, and the run still winds down in peace."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    (caller,) = _callers(flight, work, 1)
    await _settle()
    caller.cancel()
    await _settle()
    caller.cancel()
    await _settle()
    assert caller.cancelled()
    assert flight.keys() == {"key"}
    work.winding_down.set()
    await _settle()
    assert flight.keys() == frozenset()
    assert work.cancelled == 1


async def test_a_call_during_the_winding_down_starts_afresh_after_it() -> None:
    """Callers that meet a run being stopped wait for its end, then share a new one."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    (caller,) = _callers(flight, work, 1)
    await _settle()
    caller.cancel()
    await _settle()
    later = _callers(flight, work, 2)
    await _settle()
    assert work.started == 1
    work.gate.set()
    work.winding_down.set()
    assert await asyncio.gather(*later) == [("result 2", False), ("result 2", True)]


async def test_a_run_stopped_before_its_first_step_leaves_nothing_behind() -> None:
    """A run can be stopped before its work was ever called."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    (caller,) = _callers(flight, work, 1)
    await asyncio.sleep(0)
    await flight.shutdown()
    with pytest.raises(RuntimeError, match="stopped"):
        await caller
    assert work.started == 0
    assert flight.keys() == frozenset()


async def test_the_run_has_no_context_of_a_caller() -> None:
    """What a caller bound to its context is not seen by the work, which is done for all."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("of the caller")
    flight: SingleFlight[str, str] = SingleFlight()

    async def work() -> str:
        return variable.get()

    assert await flight.run("key", work) == ("unset", False)


async def test_a_run_that_cancels_itself_tells_its_callers() -> None:
    """A cancellation from within the work reaches the callers as one."""
    flight: SingleFlight[str, str] = SingleFlight()

    async def work() -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await flight.run("key", work)


@pytest.mark.parametrize(
    ("shutdown", "expected"),
    [
        (lambda flight: flight.shutdown(), RuntimeError),
        (lambda flight: flight.shutdown(OSError("closing")), OSError),
    ],
)
async def test_shutdown_stops_all_runs(
    shutdown: Callable[[SingleFlight[str, str]], Any], expected: type[Exception]
) -> None:
    """After a shutdown no run is left; those who waited, and later callers, hear why."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    callers = _callers(flight, work, 3)
    await _settle()
    stopping = asyncio.create_task(shutdown(flight))
    await _settle()
    assert not stopping.done()
    work.winding_down.set()
    await stopping
    for caller in callers:
        with pytest.raises(expected):
            await caller
    with pytest.raises(expected):
        await flight.run("key", work)
    assert work.started == 1
    assert flight.keys() == frozenset()


async def test_shutdown_while_a_run_winds_down_does_not_disturb_it() -> None:
    """A run that is winding down is not cancelled a second time, and nobody starts a new one."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    (caller,) = _callers(flight, work, 1)
    await _settle()
    caller.cancel()
    await _settle()
    (late,) = _callers(flight, work, 1)
    await _settle()
    stopping = asyncio.create_task(flight.shutdown())
    await _settle()
    work.winding_down.set()
    await stopping
    with pytest.raises(RuntimeError, match="stopped"):
        await late
    assert work.cancelled == 1
    assert work.started == 1


async def test_patient_shutdown_lets_runs_end_by_themselves() -> None:
    """What ends soon gives its result to those who wait, though nobody else may begin any more."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    callers = _callers(flight, work, 2)
    await _settle()
    stopping = asyncio.create_task(flight.shutdown(OSError("closing"), patience=30))
    await _settle()
    with pytest.raises(OSError, match="closing"):
        await flight.run("other", work)
    work.gate.set()
    await stopping
    assert {(await caller)[0] for caller in callers} == {"result 1"}
    assert (work.started, work.cancelled) == (1, 0)


async def test_patience_has_an_end() -> None:
    """What does not end in time is stopped."""
    flight: SingleFlight[str, str] = SingleFlight()
    work = Work()
    work.winding_down.set()
    (caller,) = _callers(flight, work, 1)
    await _settle()
    await flight.shutdown(OSError("closing"), patience=0)
    with pytest.raises(OSError, match="closing"):
        await caller
    assert work.cancelled == 1


async def test_shutdown_of_an_idle_flight_is_nothing() -> None:
    """Without runs a shutdown ends at once."""
    flight: SingleFlight[str, str] = SingleFlight()
    await flight.shutdown()
    assert flight.statistics() == SingleFlightStatistics(runs=0, waiters=0)


async def test_stopped_run_tells_who_waits_why() -> None:
    """One run can be ended for all who wait for it, and the next call begins another one."""
    flights: SingleFlight[str, int] = SingleFlight()
    begun = asyncio.Event()

    async def work() -> int:
        begun.set()
        await asyncio.Event().wait()
        return 1

    waiting = [asyncio.create_task(flights.run("key", work)) for _ in range(2)]
    await begun.wait()
    await flights.stop("other", LookupError("nobody hears this"))
    await flights.stop("key", LookupError("deleted"))
    for waiter in waiting:
        with pytest.raises(LookupError, match="deleted"):
            await waiter
    await flights.stop("key", LookupError("nobody hears this"))

    async def quick() -> int:
        return 2

    assert await flights.run("key", quick) == (2, False)
