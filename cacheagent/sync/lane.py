"""Threads that work for an event loop, for work that is short and comes often.

What ``loop.run_in_executor`` does for each piece of work, two futures with a lock and a condition,
and a wake-up of the loop, costs more than a look into the catalog. Here a piece of work costs an
entry in a queue, and what ends at the same time comes back together. Where it is cheaper to do
several pieces at once, as one transaction, a thread takes all that wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
W = TypeVar("W")

Ended = tuple[Any, BaseException | None]
"""What a piece of work has returned, or raised."""


class _Outcome(asyncio.Future[Any]):
    """What comes of work in a thread, which nothing can stop.

    Since it says no to a cancellation, a task that waits for it and is cancelled gets its
    ``CancelledError`` when the work has ended (``asyncio.Task.cancel``).
    """

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- the signature is asyncio's
        return False


class Lane(Generic[W]):
    """``threads`` threads with one queue. It belongs to the event loop that it was built on.

    A thread takes what waits, ``most`` pieces of it at once, and hands them to ``do``, which gives
    as many outcomes in the same order. Who is cancelled waits for the end of its work: nothing is
    done behind its back later.
    """

    def __init__(
        self, threads: int, name: str, do: Callable[[Sequence[W]], Sequence[Ended]], most: int = 1
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._do = do
        self._most = most
        self._waiting: SimpleQueue[tuple[W, _Outcome] | None] = SimpleQueue()
        self._ended: list[tuple[_Outcome, Ended]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: W) -> asyncio.Future[Any]:
        """Have ``work`` done in one of the threads; the future has what comes of it.

        Raises: ``RuntimeError`` once the lane was closed: nobody would do it any more.
        """
        if self._closed:
            raise RuntimeError("the lane is closed")
        outcome = _Outcome(loop=self._loop)
        self._waiting.put((work, outcome))
        return outcome

    async def close(self) -> None:
        """Take no other work, wait for the end of what was given, and end the threads."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _serve(self) -> None:
        while taken := self._take():
            ended = self._done([work for work, _ in taken])
            self._tell([(outcome, end) for (_, outcome), end in zip(taken, ended, strict=True)])
            # What the work held is not to be held until the next one comes.
            del taken, ended

    def _take(self) -> list[tuple[W, _Outcome]]:
        """Wait for work, and take what is there; nothing at the end of all work."""
        taken: list[tuple[W, _Outcome]] = []
        entry = self._waiting.get()
        while entry is not None:
            taken.append(entry)
            if len(taken) == self._most:
                return taken
            try:
                entry = self._waiting.get_nowait()
            except Empty:
                return taken
        if taken:
            # The end is for the next time.
            self._waiting.put(None)
        return taken

    def _done(self, works: Sequence[W]) -> Sequence[Ended]:
        try:
            return self._do(works)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the callers'
            return [(None, error)] * len(works)

    def _tell(self, ended: Sequence[tuple[_Outcome, Ended]]) -> None:
        with self._lock:
            is_first = not self._ended
            self._ended += ended
        if is_first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for outcome, (result, error) in ended:
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(_bearable(error))


def _bearable(error: BaseException) -> BaseException:
    """Give what a future can hold: it refuses a ``StopIteration`` (``asyncio.Future``)."""
    if not isinstance(error, StopIteration):
        return error
    told = RuntimeError("the work raised StopIteration")
    told.__cause__ = error
    return told


class CallLane(Lane[Callable[[], Any]]):
    """Calls functions, one at a time in each thread."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name, each)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have ``work`` called; the future has what it returns or raises."""
        return super().run(work)


def each(works: Sequence[Callable[[], Any]]) -> list[Ended]:
    """Call one after the other, whatever comes of the others."""
    return [attempt(work) for work in works]


def attempt(work: Callable[[], object]) -> Ended:
    """Call, and give what is returned or raised."""
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's
        return None, error
