"""Waits between attempts that grow with each failure in a row."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after how many failures, in seconds.

    The wait doubles from ``first`` up to ``ceiling``; half of it is random, so that many who
    failed together do not come back together. A server that asks for more gets it up to
    ``longest_asked``. ``pause`` does the waiting.
    """

    first: float = 0.5
    ceiling: float = 30.0
    longest_asked: float = 120.0
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def delay(self, failures: int, asked: float | None = None) -> float:
        """Give the seconds to wait after ``failures`` in a row (1 or more)."""
        step = min(self.ceiling, self.first * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        wait = random.uniform(step / 2, step)  # noqa: S311  it spreads load, it guards nothing
        return max(wait, min(asked or 0.0, self.longest_asked))


class Attempts:
    """Counts the failures in a row of one piece of work, and waits after each.

    ``retries`` failures in a row are forgiven; the next one is the last.
    """

    def __init__(self, backoff: Backoff, retries: int) -> None:
        self._backoff = backoff
        self._retries = retries
        self.failures = 0

    def progress(self) -> None:
        """Forget the failures: the work has come further since."""
        self.failures = 0

    async def again(self, asked: float | None = None) -> bool:
        """Count a failure; wait and give True, or give False where no attempt is left.

        ``asked`` is the wait in seconds that the other side asked for.
        """
        self.failures += 1
        if self.failures > self._retries:
            return False
        await self._backoff.pause(self._backoff.delay(self.failures, asked))
        return True
