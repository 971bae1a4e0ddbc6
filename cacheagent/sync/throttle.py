"""A rate that many share equally by bytes: a token bucket under start-time fair queueing.

Goyal, Vin, Cheng: Start-time Fair Queueing (IEEE/ACM Transactions on Networking 5 (5), 1997).
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BURST_SECONDS = 0.1
"""What the bucket holds, as time at the full rate: enough to make up for a late wake-up."""

_START = attrgetter("start")


@dataclass(slots=True)
class _Share:
    """The finish tag, in bytes, of the last take of a share."""

    finish: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Turn:
    """A take that waits: its tags in bytes, its worth in seconds, and a call to look again."""

    start: int
    finish: int
    seconds: float
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Throttle:
    """Lets takers through so that their bytes stay within a rate on the long run.

    ``rate`` is in bytes per second; None lets everything through at once. It may be set while
    takers wait, and counts for those who come after. A take larger than the bucket passes whole,
    and those after it wait for as long as it is worth. ``clock`` is a monotonic time in seconds.

    Shares that have a taker waiting at all times get the same bytes, in small takes or in large
    ones. A share that comes later, or rested, gets nothing for the time before.
    """

    def __init__(
        self,
        rate: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._paid_until = float("-inf")
        # By their start tags; those with the same one as they came.
        self._waiting: list[_Turn] = []
        # Somebody sleeps until the next one may pass.
        self._watched = False
        # The start tag of the take that passed last, and the highest finish tag of all that did.
        self._virtual = 0
        self._highest = 0
        self._own = _Share()

    def share(self) -> Callable[[int], Awaitable[None]]:
        """Give a ``take`` for a share of its own; there is nothing to close."""
        return partial(self._take, _Share())

    async def take(self, n: int) -> None:
        """Wait until ``n`` bytes may pass. A taker that is cancelled while it waits takes none.

        All who call this have one share, in which they are served in the order they came.
        """
        await self._take(self._own, n)

    async def _take(self, share: _Share, n: int) -> None:
        if self.rate is None:
            return
        turn = self._enter(share, n, n / self.rate)
        try:
            await self._until_due(turn)
            self._pay(turn)
        except BaseException:
            if share.finish == turn.finish:
                share.finish = turn.start
            raise
        finally:
            self._waiting.remove(turn)
            # Whoever watches calls the first one when it is time.
            if not self._watched:
                self._call_first()

    def _enter(self, share: _Share, n: int, seconds: float) -> _Turn:
        if not self._waiting and self._paid_until <= self._clock() - BURST_SECONDS:
            # The bucket is full: all that was taken is paid, and nobody is behind or ahead.
            self._virtual = self._highest
        start = max(self._virtual, share.finish)
        turn = _Turn(start=start, finish=start + n, seconds=seconds)
        share.finish = turn.finish
        insort(self._waiting, turn, key=_START)
        return turn

    async def _until_due(self, turn: _Turn) -> None:
        """Return when the take is the first of all, and the bucket lets it through."""
        while True:
            while self._watched or self._waiting[0] is not turn:
                turn.called.clear()
                await turn.called.wait()
            self._watched = True
            try:
                await self._until_paid()
            finally:
                self._watched = False
            if self._waiting[0] is turn:
                return
            # A share that is behind came in the meantime.
            self._call_first()

    async def _until_paid(self) -> None:
        now = self._clock()
        self._paid_until = max(self._paid_until, now - BURST_SECONDS)
        if self._paid_until > now:
            await self._sleep(self._paid_until - now)

    def _pay(self, turn: _Turn) -> None:
        self._paid_until += turn.seconds
        self._virtual = turn.start
        self._highest = max(self._highest, turn.finish)

    def _call_first(self) -> None:
        if self._waiting:
            self._waiting[0].called.set()
