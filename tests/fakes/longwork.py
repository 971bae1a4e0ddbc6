"""Long work that asks whether it has to wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheagent.sync.precedence import Precedence


class StandingClock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Give monotonic seconds."""
        return self.now


async def waits(one: Precedence) -> bool:
    """Tell whether long work would have to wait now."""
    long = asyncio.create_task(one.give_way())
    for _ in range(3):
        await asyncio.sleep(0)
    if long.done():
        return False
    long.cancel()
    await asyncio.wait({long})
    return True
