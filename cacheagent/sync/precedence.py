"""What somebody waits for, and is over soon, goes before what takes long anyway."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 0.02
"""Seconds for which somebody goes first at most: what takes longer takes long itself."""

LATELY = 0.1
"""Seconds behind short work for which more of it is expected."""


class Turn:
    """Somebody goes first until ``end``, or for ``PATIENCE``."""

    __slots__ = ("_on_end", "_timer")

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = loop.call_later(PATIENCE, self.end)

    def end(self) -> None:
        """Go first no more; a second time does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._on_end()


class Precedence:
    """Keeps long work waiting while there is short work, for half of the time at most.

    What it may be kept waiting for is earned by the time in which it is not, up to ``PATIENCE``: so
    it goes on, however much short work there is. ``clock`` gives monotonic seconds. It belongs to
    one event loop, but for ``give_way_in_thread``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns = 0
        self._earned = PATIENCE
        self._since = clock()
        self._until = 0.0
        self._expected = 0.0
        self._idle = asyncio.Event()
        # The same for threads.
        self._free = threading.Event()

    def begin(self) -> Turn:
        """Go first from now on."""
        if not self._turns:
            now = self._clock()
            self._earned = min(PATIENCE, self._earned + now - self._since)
            self._until = now + self._earned
            self._idle.clear()
            self._free.clear()
        self._turns += 1
        self._expected = self._clock() + PATIENCE + LATELY
        return Turn(self._end)

    def _end(self) -> None:
        self._turns -= 1
        if not self._turns:
            self._since = self._clock()
            self._earned = max(0.0, self._until - self._since)
            self._until = 0.0
            self._idle.set()
            self._free.set()

    def _left(self) -> float:
        """Give the seconds for which long work has to wait, unless short work ends earlier."""
        until = self._until
        return until - self._clock() if until else 0.0

    async def give_way(self) -> bool:
        """Wait while somebody goes first; tell whether more of that is expected.

        Then long work goes on in short pieces, and asks again behind each.
        """
        # The next may have begun before this is woken by the end of the last one.
        while (left := self._left()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._idle.wait()
        return self._clock() < self._expected

    def give_way_in_thread(self) -> bool:
        """Do what ``give_way`` does, and block; for threads that are not the loop's."""
        while (left := self._left()) > 0:
            self._free.wait(left)
        return self._clock() < self._expected
