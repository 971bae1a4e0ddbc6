"""What happens, for those who may know of it."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from cacheagent.errors import InstanceNotFoundError
from cacheagent.model import ImageId, InstanceId
from cacheagent.service.events import EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cacheagent.model import Caller
    from cacheagent.service.access import Access
    from cacheagent.service.events import Event
    from cacheagent.service.parts import Parts
    from cacheagent.service.tenancy import TenantDisks

NOES = 1000
"""Refusals that one stream remembers at most."""


class Following:
    """Satisfies ``api.services.EventService``."""

    def __init__(self, parts: Parts, *, access: Access, disks: TenantDisks) -> None:
        self._events = parts.events
        self._clock = parts.clock
        self._config = parts.config
        self._access = access
        self._disks = disks

    async def follow(self, after: str | None, caller: Caller) -> AsyncGenerator[Event, None]:
        """Give what happens from now on, or behind the event ``after``, until the daemon stops.

        A caller with a token gets the events of images that it may have, and word of what it
        missed; of a disk it is told while it may see the instance. All others are left out.

        Raises:
            UnauthenticatedError: nobody knows the caller's token.
            GlanceUnavailableError: Glance cannot tell what the caller may have.

        """
        sight = _Sight(self._access, caller, self._clock, self._ttl)
        async with aclosing(self._events.follow(after)) as events:
            async for event in events:
                if caller.token is None or (
                    await sight.sees(event) and await self._sees_instance(event, caller)
                ):
                    yield event

    async def _sees_instance(self, event: Event, caller: Caller) -> bool:
        """Tell whether the event is about no instance, or one that the caller may see now.

        One that has gone is nobody's: its other disks, which told whose it was, went before.
        """
        told = event.facts.get("instance_id")
        if not isinstance(told, str):
            return True
        try:
            await self._disks.instance(InstanceId(told), caller)
        except InstanceNotFoundError:
            return False
        return True

    def _ttl(self) -> float:
        return self._config().glance.access_ttl


class _Sight:
    """What one caller may know of. A no is believed as long as a yes: progress comes often."""

    def __init__(
        self,
        access: Access,
        caller: Caller,
        clock: Callable[[], float],
        ttl: Callable[[], float],
    ) -> None:
        self._access = access
        self._caller = caller
        self._clock = clock
        self._ttl = ttl
        self._refused: dict[ImageId, float] = {}

    async def sees(self, event: Event) -> bool:
        if event.kind is EventKind.MISSED:
            return True
        told = event.facts.get("image_id")
        if not isinstance(told, str):
            return False
        image_id = ImageId(told)
        if self._refused.get(image_id, 0.0) > self._clock():
            return False
        self._refused.pop(image_id, None)
        if await self._access.may(image_id, self._caller):
            return True
        while len(self._refused) >= NOES:
            del self._refused[next(iter(self._refused))]
        self._refused[image_id] = self._clock() + self._ttl()
        return False
