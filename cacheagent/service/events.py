"""What happens in the agent, for those who watch it."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cacheagent.sync.broadcast import Broadcast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

KEPT = 1000
"""Events that are kept for those who come back and ask for what they missed."""


class EventKind(enum.StrEnum):
    """What can happen."""

    IMAGE_PROGRESS = "image.progress"
    IMAGE_PUBLISHED = "image.published"
    IMAGE_FAILED = "image.failed"
    IMAGE_REFUSED = "image.refused"
    IMAGE_STANDING = "image.standing"
    DISK_CREATED = "disk.created"
    DISK_FAILED = "disk.failed"
    DISK_GONE = "disk.gone"
    BASE_EVICTED = "base.evicted"
    BASE_DAMAGED = "base.damaged"
    BASE_REFUSED = "base.refused"
    BASE_VERIFIED = "base.verified"
    PRUNE = "prune"
    MISSED = "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened: ``facts`` are JSON, by the names that the API uses.

    ``event_id`` orders the events of one run of the daemon. ``MISSED`` is no event of its own: it
    tells a reader that some before it are no longer there.
    """

    event_id: str
    kind: EventKind
    at: datetime
    facts: Mapping[str, object]


class Events:
    """Takes what happens, and lets anybody follow it; ``now`` gives the time."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._run = secrets.token_hex(4)
        self._told: Broadcast[Event] = Broadcast(KEPT)

    def emit(self, kind: EventKind, **facts: object) -> None:
        """Tell what happened."""
        event_id = f"{self._run}-{self._told.told + 1}"
        self._told.tell(Event(event_id=event_id, kind=kind, at=self._now(), facts=facts))

    async def follow(self, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Give what happens from now on, or behind the event ``after``, until ``close``.

        Where some of what was asked for is gone, ``MISSED`` comes in its place: it was long ago,
        or in an earlier run of the daemon.
        """
        last, known = self._place(after)
        if not known:
            yield self._missed(last)
        async with aclosing(self._told.follow(last)) as told:
            async for number, event in told:
                if number != last + 1:
                    yield self._missed(number - 1)
                last = number
                yield event

    def close(self) -> None:
        """End every ``follow``."""
        self._told.close()

    def _place(self, after: str | None) -> tuple[int, bool]:
        """Give the number behind which to begin, and whether ``after`` is one of this run's."""
        if after is None:
            return self._told.told, True
        run, _, number = after.rpartition("-")
        if run != self._run or not number.isdecimal() or int(number) > self._told.told:
            return self._told.oldest - 1, False
        return int(number), True

    def _missed(self, number: int) -> Event:
        return Event(
            event_id=f"{self._run}-{number}", kind=EventKind.MISSED, at=self._now(), facts={}
        )
