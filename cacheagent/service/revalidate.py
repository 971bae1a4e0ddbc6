"""Glance is asked whether the cached images still exist, are active, and are what they were."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import (
    CacheAgentError,
    ImageNotFoundError,
    RetryLaterError,
    UnauthenticatedError,
)
from cacheagent.model import Caller, ImageId, Standing
from cacheagent.policy.standing import judge, judge_absent
from cacheagent.service.events import EventKind
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cacheagent.model import CachedImage
    from cacheagent.service.parts import Parts

AT_ONCE = 4
PER_SECOND = 10
"""Questions that a pass asks side by side, and in a second, at most: Glance has others to serve."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a pass has found so far: new standings, and images that it came to nothing with."""

    changed: dict[ImageId, Standing] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class Revalidate:
    """Keeps the standing of the cached images; calls ``on_inactive`` where one is to go.

    It asks with the agent's own credentials: which image a tenant may have is another question.
    """

    def __init__(self, parts: Parts, on_inactive: Callable[[], None]) -> None:
        self._catalog = parts.catalog
        self._glance = parts.glance
        self._now = parts.now
        self._events = parts.events
        self._on_inactive = on_inactive
        self._rate = Throttle(PER_SECOND)
        # What the agent itself could see since it runs: it knows when that has gone.
        self._seen: set[ImageId] = set()

    async def run(self) -> Mapping[ImageId, Standing]:
        """Ask about every image that has a base; give those whose standing changed.

        A question that Glance does not answer, and an answer that cannot be written down, change
        nothing. Where Glance cannot be asked at all, the pass ends there.
        """
        images = [cached for cached in await self._catalog.images() if cached.base_id is not None]
        self._seen &= {cached.image.image_id for cached in images}
        found, todo = _Pass(), iter(images)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(self._work(todo, found))
        except* (RetryLaterError, UnauthenticatedError) as errors:
            _log.warning("cached images cannot be asked about", why=str(errors.exceptions[0]))
        if found.failed:
            told = {"count": len(found.failed), "first": found.failed[0]}
            _log.warning("nothing new is known of cached images", **told)
        if any(standing is not Standing.ACTIVE for standing in found.changed.values()):
            self._on_inactive()
        return found.changed

    async def _work(self, todo: Iterator[CachedImage], found: _Pass) -> None:
        """Ask about one image after the other; all workers take from the same ``todo``."""
        for cached in todo:
            image_id = cached.image.image_id
            await self._rate.take(1)
            try:
                standing = await self._standing(cached)
                if standing is not None and standing is not cached.standing:
                    await self._note(cached, standing)
                    found.changed[image_id] = standing
            except (RetryLaterError, UnauthenticatedError):
                raise
            except CacheAgentError as error:
                found.failed.append(f"{image_id}: {error}")

    async def _standing(self, cached: CachedImage) -> Standing | None:
        known = cached.image
        try:
            said = await self._glance.show(known.image_id, Caller())
        except ImageNotFoundError:
            return judge_absent(known, was_seen=known.image_id in self._seen)
        self._seen.add(known.image_id)
        standing = judge(known, said)
        if standing is Standing.ACTIVE and said.visibility != known.visibility:
            await self._share(cached, said.visibility)
        return standing

    async def _share(self, cached: CachedImage, visibility: str) -> None:
        """Note who sees the image now: the right to a public one proves nothing any more."""
        if cached.base_id is not None:
            image = replace(cached.image, visibility=visibility)
            await self._catalog.link_image(image, cached.base_id, self._now())

    async def _note(self, cached: CachedImage, standing: Standing) -> None:
        facts = {"image_id": cached.image.image_id, "base_id": cached.base_id}
        await self._catalog.set_standing(cached.image.image_id, standing)
        _log.info("what Glance says of an image changed", standing=standing.value, **facts)
        self._events.emit(EventKind.IMAGE_STANDING, reason=standing.value, **facts)
