"""The agent at a glance, and the gauges that are brought up to date when somebody looks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import cacheagent
from cacheagent.model import (
    BaseState,
    DiskFormat,
    DiskMode,
    DiskState,
    ImageState,
    SpaceUsage,
    StatusView,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from cacheagent.model import Base, BaseId, CachedImage, Disk, ImageId
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts


class Status:
    """What the daemon knows of itself; satisfies ``api.services.StatusService``.

    ``ready`` and ``stopping`` are set by the daemon, ``loops`` by whoever ran one.
    """

    def __init__(self, parts: Parts, *, bases: Bases) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._glance = parts.glance
        self._room = parts.room
        self._metrics = parts.metrics
        self._config = parts.config
        self._bases = bases
        self._started_at = self._now()
        self.ready = False
        self.stopping = False
        self.loops: dict[str, datetime | None] = {}

    async def status(self) -> StatusView:
        """Give the agent at a glance."""
        usage = await self._store.usage()
        bases = await self._catalog.bases()
        high, low = self._watermarks(usage)
        contact = self._glance.contact
        return StatusView(
            version=cacheagent.__version__,
            started_at=self._started_at,
            uptime_seconds=(self._now() - self._started_at).total_seconds(),
            ready=self.ready,
            stopping=self.stopping,
            space=usage,
            cache_allocated=sum(base.allocated for base in bases),
            reserved=self._room.reserved,
            high_watermark_bytes=high,
            low_watermark_bytes=low,
            min_free=self._config().eviction.min_free,
            counts=await self._counts(bases),
            loops=self.loops,
            glance_reachable=contact.reachable,
            glance_checked_at=contact.at,
        )

    async def refresh_metrics(self) -> None:
        """Bring the gauges up to date."""
        images = await self._catalog.images()
        bases = await self._catalog.bases()
        disks = await self._catalog.disks()
        self._count_images(images, bases)
        self._count_bases(bases, disks)
        self._metrics.bases_pinned.set(len(_pinned(images, await self._catalog.pins())))
        self._metrics.download_waiters.set(self._bases.all_waiters())
        await self._measure_space()

    async def _counts(self, bases: Sequence[Base]) -> Mapping[str, int]:
        disks = await self._catalog.disks()
        return {
            "images": len(await self._catalog.images()),
            "bases": len(bases),
            "disks": len(disks),
            "instances": len({disk.key.instance_id for disk in disks}),
            "downloads": len(self._bases.coming()),
        }

    def _count_images(self, images: Sequence[CachedImage], bases: Sequence[Base]) -> None:
        states = {base.base_id: base.state for base in bases}
        counted = Counter(self._image_state(cached, states) for cached in images)
        counted[ImageState.FAILED] += len(
            self._bases.failures().keys() - {cached.image.image_id for cached in images}
        )
        for state in ImageState:
            self._metrics.images.labels(state=state).set(counted[state])

    def _image_state(self, cached: CachedImage, states: Mapping[BaseId, BaseState]) -> ImageState:
        image_id = cached.image.image_id
        if (progress := self._bases.progress(image_id)) is not None:
            return ImageState(progress.phase)
        if cached.base_id is None:
            failed = image_id in self._bases.failures()
            return ImageState.FAILED if failed else ImageState.QUEUED
        quarantined = states.get(cached.base_id) is BaseState.QUARANTINED
        return ImageState.QUARANTINED if quarantined else ImageState.READY

    def _count_bases(self, bases: Sequence[Base], disks: Sequence[Disk]) -> None:
        used = {disk.base_id for disk in disks if disk.needs_base}
        unused = [base for base in bases if base.base_id not in used]
        now = self._now()
        ages = ((now - base.last_used_at).total_seconds() for base in unused)
        sizes = self._metrics.cache_bytes
        sizes.labels(kind="allocated").set(sum(base.allocated for base in bases))
        sizes.labels(kind="virtual").set(sum(base.virtual_size for base in bases))
        sizes.labels(kind="apparent").set(sum(map(_length, bases)))
        self._metrics.bases_in_use.set(len(bases) - len(unused))
        self._metrics.oldest_unused_seconds.set(max(ages, default=0.0))
        modes = Counter(disk.mode for disk in disks if disk.state is DiskState.READY)
        for mode in DiskMode:
            self._metrics.disks.labels(mode=mode).set(modes[mode])

    async def _measure_space(self) -> None:
        usage = await self._store.usage()
        high, low = self._watermarks(usage)
        self._metrics.filesystem_size_bytes.set(usage.total)
        self._metrics.filesystem_available_bytes.set(usage.available)
        self._metrics.watermark_bytes.labels(level="high").set(high)
        self._metrics.watermark_bytes.labels(level="low").set(low)
        self._metrics.reserved_bytes.set(self._room.reserved)
        self._metrics.partial_bytes.set(await self._store.partial_bytes())

    def _watermarks(self, usage: SpaceUsage) -> tuple[int, int]:
        """Give the used bytes at which eviction starts, and those at which it ends."""
        eviction = self._config().eviction
        total = usage.total
        return int(total * eviction.high_watermark / 100), int(total * eviction.low_watermark / 100)


def _length(base: Base) -> int:
    """Give the length of the base's file: a raw disk, or an image that was kept as it came."""
    return base.virtual_size if base.format is DiskFormat.RAW else base.size


def _pinned(images: Iterable[CachedImage], pins: frozenset[ImageId]) -> set[str]:
    return {
        cached.base_id
        for cached in images
        if cached.base_id is not None and cached.image.image_id in pins
    }
