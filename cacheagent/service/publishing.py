"""The last steps of an ingest: a file becomes a base, and an image stands for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import Manifest
from cacheagent.errors import CatalogError
from cacheagent.model import BaseState, CacheResult
from cacheagent.policy import admission
from cacheagent.service.events import EventKind

if TYPE_CHECKING:
    from cacheagent.model import Base, GlanceImage
    from cacheagent.service.ingest import Made
    from cacheagent.service.parts import Parts
    from cacheagent.service.renewal import Renewal
    from cacheagent.service.trust import Trust

_log = structlog.get_logger(__name__)


class Publishing:
    """Publishes bases, and links images to them. The caller holds the lock of the base."""

    def __init__(self, parts: Parts, trust: Trust, renewal: Renewal) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._room = parts.room
        self._events = parts.events
        self._rules = parts.rules
        self._failures = parts.metrics.scrub_failures_total
        self._now = parts.now
        self._trust = trust
        self._renewal = renewal

    async def link(self, image: GlanceImage, base: Base) -> Base:
        """Let the image stand for a base of equal content, if that is what it says it is."""
        admission.admit_alias(image, base.source_format, base.virtual_size, self._rules())
        linked = await self._room.retrying(
            lambda: self._catalog.link_image(image, base.base_id, self._now())
        )
        if not linked:
            raise CatalogError(f"base {base.base_id} went while its lock was held")
        images = await self._catalog.images_of(base.base_id)
        known = tuple(cached.image for cached in images)
        await self._store.write_manifest(Manifest(base=base, images=known))
        await self._store.discard_ingest(image.image_id)
        self._tell(image, base)
        return base

    async def publish(
        self, image: GlanceImage, made: Made, here: Base | None
    ) -> tuple[Base, CacheResult]:
        """Give the file its name, then the catalog its row: a crash in between is adopted.

        Where the base is ``here`` already, it stays, and gains what was proved of the image. Only
        where it is not what the image gives does the new file take its place.
        """
        base = made.manifest.base
        if here is not None:
            kept = await self._kept(image, made, here)
            if kept is not None:
                return await self.link(image, kept), CacheResult.HIT
            await self._take_out(here)
        manifest = await self._store.publish(made.path, made.manifest)
        try:
            await self._room.retrying(lambda: self._record(manifest))
        except BaseException:
            # A file that no row tells of would be nobody's.
            await self._store.trash_base(base.base_id, base.format)
            await self._store.drop_trashed(base.base_id, base.format)
            raise
        # A damaged one that it takes the place of is of no use any more.
        await self._store.drop_quarantined(base.base_id, base.format)
        await self._store.discard_ingest(image.image_id)
        self._trust.forget(base.base_id)
        _log.info("published", image_id=image.image_id, base_id=base.base_id, bytes=image.size)
        self._tell(image, manifest.base)
        return manifest.base, CacheResult.MISS

    async def _kept(self, image: GlanceImage, made: Made, here: Base) -> Base | None:
        """Give the base that is here, with what was proved now; None where it is another file."""
        if not await self._trust.lacks(here, image):
            return here
        new = made.manifest.base
        same = (new.format, new.source_format) == (here.format, here.source_format)
        if not (same and await self._renewal.is_same(made.path, here)):
            return None
        return await self._renewal.record(here, new.signatures)

    async def _take_out(self, here: Base) -> None:
        """Take a base out of use that is not what its image gives; what has it open keeps it."""
        why = "its image, fetched anew, gives another file"
        self._failures.inc()
        _log.error("a base is not what it was", base_id=here.base_id, why=why)
        self._events.emit(EventKind.BASE_DAMAGED, base_id=here.base_id, reason=why)
        await self._catalog.set_base_state(here.base_id, BaseState.QUARANTINED)
        await self._store.quarantine_base(here.base_id, here.format)

    async def _record(self, manifest: Manifest) -> None:
        base = manifest.base
        await self._catalog.publish(base, manifest.images, base.fetched_at)

    def _tell(self, image: GlanceImage, base: Base) -> None:
        facts = {"name": image.name, "base_id": base.base_id, "bytes": base.size}
        self._events.emit(EventKind.IMAGE_PUBLISHED, image_id=image.image_id, **facts)
