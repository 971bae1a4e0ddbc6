"""A lock per key, there only while somebody holds it or waits for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

K = TypeVar("K", bound="Hashable")


@dataclass(slots=True, eq=False)
class _Entry:
    """The lock of a key, and how many hold it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class KeyLock(Generic[K]):
    """Mutual exclusion among those who name the same key, in the order in which they came.

    ``len()`` is the number of keys in use. All methods belong to one event loop. A holder must
    not ask for its own key again: it would wait for itself.
    """

    def __init__(self) -> None:
        self._entries: dict[K, _Entry] = {}

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        """Hold the lock of ``key`` for the body of an ``async with``."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
        entry.users += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.users -= 1
            if not entry.users:
                del self._entries[key]

    def held(self, key: K) -> bool:
        """Tell whether somebody holds the lock of ``key`` or is about to."""
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
