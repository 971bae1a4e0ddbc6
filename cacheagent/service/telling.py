"""How far an ingest is, told to those who follow the events."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from cacheagent.service.events import EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.model import ImageId
    from cacheagent.service.events import Events
    from cacheagent.service.meter import Meter

SECONDS = 1.0
"""How often an ingest that goes on is told of, at most."""


@contextlib.asynccontextmanager
async def told(events: Events, image_id: ImageId, meter: Meter) -> AsyncIterator[None]:
    """Tell at once, and then each second, what the meter says, if it is another thing."""
    telling = asyncio.create_task(_tell(events, image_id, meter))
    try:
        yield
    finally:
        telling.cancel()


async def _tell(events: Events, image_id: ImageId, meter: Meter) -> None:
    last: object = None
    while True:
        now = meter.progress()
        state = (now.phase, now.bytes_done, now.bytes_total)
        if state != last:
            events.emit(
                EventKind.IMAGE_PROGRESS,
                image_id=image_id,
                phase=now.phase.value,
                bytes_done=now.bytes_done,
                bytes_total=now.bytes_total,
                bytes_per_second=int(now.bytes_per_second),
            )
            last = state
        await asyncio.sleep(SECONDS)
