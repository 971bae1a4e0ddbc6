"""Threads that work for an event loop, for work that is short and comes often.

What ``loop.run_in_executor`` does for each piece of work, two futures with a lock and a condition,
and a wake-up of the loop, costs more than a look into the catalog. Here a piece of work costs an
entry in a queue, and what ends at the same time comes back together.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Outcome(asyncio.Future[T]):
    """What comes of work in a thread, which nothing can stop.

    Since it says no to a cancellation, a task that waits for it and is cancelled gets its
    ``CancelledError`` when the work has ended (``asyncio.Task.cancel``).
    """

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- the signature is asyncio's
        return False


class Lane:
    """``threads`` threads with one queue. It belongs to the event loop that it was built on.

    Who is cancelled waits for the end of its work: nothing is done behind its back later.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[Callable[[], Any], _Outcome[Any]] | None] = SimpleQueue()
        self._ended: list[tuple[_Outcome[Any], Any, BaseException | None]] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have ``work`` done in one of the threads; the future has what it returns or raises."""
        outcome: _Outcome[T] = _Outcome(loop=self._loop)
        self._work.put((work, outcome))
        return outcome

    async def close(self) -> None:
        """Wait for the end of all work that was given, and end the threads."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            work, outcome = task
            try:
                self._end(outcome, work(), None)
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's
                self._end(outcome, None, error)
            # What the work held is not to be held until the next one comes.
            del task, work, outcome

    def _end(self, outcome: _Outcome[Any], result: object, error: BaseException | None) -> None:
        with self._lock:
            is_first = not self._ended
            self._ended.append((outcome, result, error))
        if is_first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for outcome, result, error in ended:
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
