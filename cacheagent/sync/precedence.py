"""What somebody waits for, and is over soon, goes before what takes long anyway."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 0.02
"""Seconds that long work gives way for at a time: where short work never ends, it goes on."""


class Precedence:
    """Keeps long work waiting while there is short work. It belongs to one event loop."""

    def __init__(self) -> None:
        self._short = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def short(self) -> Iterator[None]:
        """Go first, for the body of a ``with``."""
        self._short += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._short -= 1
            if not self._short:
                self._idle.set()

    async def give_way(self) -> None:
        """Wait until there is no short work, but no longer than ``PATIENCE``."""
        if self._short:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._idle.wait()
