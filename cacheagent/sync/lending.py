"""A fixed number of things that many borrow: made when they are wanted, kept while any is out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Lending(Generic[T]):
    """Lends at most ``number`` things that ``make`` makes, first come, first served.

    Nobody gets stuck where at least one thing is there for each borrower, and whoever waits for
    one gives those that he holds back meanwhile, but for one.
    """

    def __init__(self, make: Callable[[], T], number: int) -> None:
        self._make = make
        self._left = asyncio.Semaphore(number)
        self._spare: list[T] = []
        self._out = 0

    async def take(self) -> T:
        """Give a thing that nobody else has, as the last borrower left it; wait for one if need be.

        Raises: what ``make`` raises.
        """
        # asyncio.Semaphore wakes its waiters first come, first served.
        await self._left.acquire()
        try:
            thing = self._spare.pop() if self._spare else self._make()
        except BaseException:
            self._left.release()
            raise
        self._out += 1
        return thing

    def give(self, thing: T) -> None:
        """Take a thing back. When all are back they are forgotten, and with them their memory."""
        self._out -= 1
        self._spare.append(thing)
        if not self._out:
            self._spare.clear()
        self._left.release()
