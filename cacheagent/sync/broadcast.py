"""What happens, told to many: a bounded memory of the latest, that each reader follows by itself.

A reader that is slower than the memory is long misses what was dropped, and is told so. Nobody
waits for a reader.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

T = TypeVar("T")


class Broadcast(Generic[T]):
    """Numbers what it is told, from 1, and keeps the latest ``capacity`` of it.

    All methods belong to one event loop.
    """

    def __init__(self, capacity: int) -> None:
        self._kept: deque[T] = deque(maxlen=capacity)
        self._told = 0
        self._news = asyncio.Event()
        self._closed = False

    @property
    def told(self) -> int:
        """The number of what was told last, 0 before the first."""
        return self._told

    @property
    def oldest(self) -> int:
        """The number of the oldest that is kept; one more than ``told`` where none is."""
        return self._told - len(self._kept) + 1

    def tell(self, item: T) -> None:
        """Tell all who follow, and keep it for those who come later."""
        self._kept.append(item)
        self._told += 1
        self._wake()

    def close(self) -> None:
        """End every ``follow`` behind what was told until now."""
        self._closed = True
        self._wake()

    async def follow(self, after: int) -> AsyncGenerator[tuple[int, T], None]:
        """Give what was told after number ``after``, with its number, and go on until ``close``.

        A number that is not the last one's successor tells that something was missed.
        """
        number = after
        while True:
            number = max(number + 1, self.oldest)
            while number <= self._told:
                yield number, self._kept[number - self.oldest]
                number = max(number + 1, self.oldest)
            number -= 1
            if self._closed:
                return
            await self._news.wait()

    def _wake(self) -> None:
        # Those who wait keep the old event; whoever comes later waits for the new one.
        self._news.set()
        self._news = asyncio.Event()
