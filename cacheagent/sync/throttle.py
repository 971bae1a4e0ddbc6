"""A rate that many share: a token bucket whose takers are served in the order they came."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BURST_SECONDS = 0.1
"""What the bucket holds, as time at the full rate: enough to make up for a late wake-up."""


class Throttle:
    """Lets takers through so that their bytes stay within a rate on the long run.

    ``rate`` is in bytes per second; None lets everything through at once. It may be set while
    takers wait, and counts for those who come after. A take larger than the bucket passes whole,
    and those after it wait for as long as it is worth. ``clock`` is a monotonic time in seconds.
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
        self._turn = asyncio.Lock()
        self._paid_until = float("-inf")

    async def take(self, n: int) -> None:
        """Wait until ``n`` bytes may pass. A taker that is cancelled while it waits takes none."""
        if self.rate is None:
            return
        cost = n / self.rate
        # asyncio.Lock wakes its waiters first come, first served; one sleeps, the rest queue.
        async with self._turn:
            now = self._clock()
            start = max(self._paid_until, now - BURST_SECONDS)
            if start > now:
                await self._sleep(start - now)
            self._paid_until = start + cost
