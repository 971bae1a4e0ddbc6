"""One run per key at a time: whoever asks meanwhile shares its result or its failure."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFlightStatistics:
    """How many runs have not ended, and how many callers wait for them."""

    runs: int
    waiters: int


@dataclass(slots=True, eq=False)
class _Run(Generic[V]):
    """A run: its task, who waits for it, whether it was told to stop, and what to say of that."""

    task: asyncio.Task[V]
    waiters: int = 0
    stopping: bool = False
    stopped_by: Exception | None = None
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    async def wait(self) -> None:
        """Wait for the end of the task, which is not over; to be cancelled leaves it as it is."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        await waiter

    def end(self) -> None:
        """Wake those who wait: the task ends in this turn of the loop, or has ended."""
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()

    def stop(self) -> asyncio.Task[V]:
        """Cancel the task, once: a second time would break into its winding down."""
        if not self.stopping:
            self.stopping = True
            self.task.cancel()
        return self.task


class SingleFlight(Generic[K, V]):
    """Runs work once per key, however many callers want it at the same time.

    The work runs in a task with an empty context, so that it belongs to no caller: nothing that
    the first caller bound to its context shows up in what is done for all. A caller that is
    cancelled leaves; the last one to leave stops the run and waits until it has wound down.
    An error that nobody is left to hear goes to the loop's exception handler.

    All methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._runs: dict[K, _Run[V]] = {}
        self._closed: Exception | None = None

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> tuple[V, bool]:
        """Join the run of ``key``, or start ``work`` where there is none; wait for its end.

        Returns what the work returned, and whether this call joined a run that was there. A call
        that meets a run which is being stopped waits for its end and then starts afresh.

        Raises: what the work raised, the same error for every caller; the error of ``stop``, and
        of ``shutdown`` after that; ``asyncio.CancelledError`` where the work cancelled itself.
        """
        run = await self._running(key)
        joined = run is not None
        if run is None:
            run = self._start(key, work)
        run.waiters += 1
        try:
            await run.wait()
        finally:
            run.waiters -= 1
            if not run.waiters and not run.task.done():
                await asyncio.wait({run.stop()})
        if run.task.cancelled():
            if run.stopped_by is not None:
                raise run.stopped_by.with_traceback(None)
            self._refuse_when_closed()
        # Future.result() raises with the traceback as it was when the work ended, so that it does
        # not grow with each caller that gets the error.
        return run.task.result(), joined

    def waiters(self, key: K) -> int:
        """Count the callers that wait for the run of ``key``; 0 where there is none."""
        run = self._runs.get(key)
        return 0 if run is None else run.waiters

    def keys(self) -> frozenset[K]:
        """Give the keys whose run has not ended, those that are being stopped included."""
        return frozenset(key for key, run in self._runs.items() if not run.task.done())

    def statistics(self) -> SingleFlightStatistics:
        """Count runs and waiters as they are now."""
        return SingleFlightStatistics(
            runs=len(self.keys()), waiters=sum(run.waiters for run in self._runs.values())
        )

    async def stop(self, key: K, error: Exception) -> None:
        """Stop the run of ``key``, where there is one, and wait for its end; who waits gets error.

        A run that ends well in spite of that gives its result.
        """
        run = self._runs.get(key)
        if run is not None and not run.task.done():
            run.stopped_by = error
            await asyncio.wait({run.stop()})

    async def shutdown(
        self, error: Exception | None = None, *, patience: float | None = None
    ) -> None:
        """Start no other run, stop those that are there, and wait for their end.

        With ``patience`` they get so many seconds to end by themselves first. Those who wait for
        one that is stopped, and whoever calls later, get ``error``; a ``RuntimeError`` by default.
        """
        self._closed = error or RuntimeError("the work was stopped")
        runs = tuple(self._runs.values())
        if runs and patience is not None:
            await asyncio.wait({run.task for run in runs}, timeout=patience)
        if stopping := {run.stop() for run in runs if not run.task.done()}:
            await asyncio.wait(stopping)

    async def _running(self, key: K) -> _Run[V] | None:
        """Find the run that a caller may join, after any that is being stopped has ended."""
        self._refuse_when_closed()
        while (run := self._runs.get(key)) is not None and not run.task.done():
            if not run.stopping:
                return run
            await asyncio.wait({run.task})
            self._refuse_when_closed()
        return None

    def _start(self, key: K, work: Callable[[], Awaitable[V]]) -> _Run[V]:
        async def execute() -> V:
            try:
                return await work()
            finally:
                # One turn of the loop earlier than by the callback.
                run.end()

        task = asyncio.get_running_loop().create_task(execute(), context=contextvars.Context())
        run = _Run(task)
        self._runs[key] = run
        task.add_done_callback(partial(self._forget, key, run))
        return run

    def _forget(self, key: K, run: _Run[V], _task: asyncio.Task[V]) -> None:
        run.end()
        # A caller that came between the end of the task and this callback has put a new run here.
        if self._runs.get(key) is run:
            del self._runs[key]

    def _refuse_when_closed(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)
