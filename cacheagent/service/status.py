"""The agent at a glance, and the gauges that are brought up to date when somebody looks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import cacheagent
from cacheagent.model import BaseState, ImageState, SpaceUsage, StatusView
from cacheagent.policy.eviction import watermark
from cacheagent.service.images import told
from cacheagent.service.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cacheagent.model import Caller, Counts, ImageId
    from cacheagent.service.access import Access
    from cacheagent.service.bases import Bases
    from cacheagent.service.outcome import Outcome
    from cacheagent.service.parts import Parts


class Status:
    """What the daemon knows of itself; satisfies ``api.services.StatusService``.

    ``ready`` and ``stopping`` are set by the daemon, ``loops`` by whoever ran one.
    """

    def __init__(self, parts: Parts, *, bases: Bases, outcome: Outcome, access: Access) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._glance = parts.glance
        self._qemu = parts.qemu
        self._room = parts.room
        self._metrics = parts.metrics
        self._config = parts.config
        self._bases = bases
        self._outcome = outcome
        self._access = access
        self._quarantine = Quarantine(parts)
        self._started_at = self._now()
        self.ready = False
        self.stopping = False
        self.loops: dict[str, datetime | None] = {}

    async def status(self, caller: Caller) -> StatusView:
        """Give the agent at a glance; of refused images those that the caller may see."""
        usage = await self._store.usage()
        counts = await self._catalog.counts(self._now())
        high, low = self._watermarks(usage)
        contact = self._glance.contact
        return StatusView(
            version=cacheagent.__version__,
            started_at=self._started_at,
            uptime_seconds=(self._now() - self._started_at).total_seconds(),
            ready=self.ready,
            stopping=self.stopping,
            sandbox=self._qemu.sandbox.kind,
            space=usage,
            cache_bytes=await self._store.cache_bytes(),
            reserved=self._room.reserved,
            high_watermark_bytes=high,
            low_watermark_bytes=low,
            min_free=self._config().eviction.min_free,
            max_size=self._config().eviction.max_size,
            doubts=told(self._outcome.doubts, caller),
            unmet_bytes=self._outcome.unmet_bytes,
            quarantine=await self._quarantine.view(caller, self._access),
            counts=await self._counts(counts),
            loops=self.loops,
            glance_reachable=contact.reachable,
            glance_checked_at=contact.at,
        )

    async def refresh_metrics(self) -> None:
        """Bring the gauges up to date."""
        counts = await self._catalog.counts(self._now())
        self._count_images(await self._catalog.image_states())
        self._count_bases(counts)
        for mode, number in counts.ready_disks.items():
            self._metrics.disks.labels(mode=mode).set(number)
        self._metrics.leases.set(counts.leases)
        self._metrics.download_waiters.set(self._bases.all_waiters())
        await self._measure_space()

    async def _counts(self, counts: Counts) -> Mapping[str, int]:
        return {
            "images": len(await self._catalog.image_states()),
            "bases": counts.bases,
            "bases_in_use": counts.in_use,
            "pinned": counts.pinned,
            "quarantined": counts.quarantined,
            "leases": counts.leases,
            "disks": counts.disks,
            "instances": counts.instances,
            "downloads": len(self._bases.coming()),
        }

    def _count_images(self, states: Mapping[ImageId, BaseState]) -> None:
        counted = Counter(self._image_state(*each) for each in states.items())
        counted[ImageState.FAILED] += len(self._bases.failures().keys() - states.keys())
        for state in ImageState:
            self._metrics.images.labels(state=state).set(counted[state])

    def _image_state(self, image_id: ImageId, state: BaseState) -> ImageState:
        if (progress := self._bases.progress(image_id)) is not None:
            return ImageState(progress.phase)
        if state is BaseState.INGESTING:
            failed = image_id in self._bases.failures()
            return ImageState.FAILED if failed else ImageState.QUEUED
        quarantined = state is BaseState.QUARANTINED
        return ImageState.QUARANTINED if quarantined else ImageState.READY

    def _count_bases(self, counts: Counts) -> None:
        sizes = self._metrics.cache_bytes
        sizes.labels(kind="allocated").set(counts.allocated)
        sizes.labels(kind="virtual").set(counts.virtual)
        sizes.labels(kind="apparent").set(counts.apparent)
        self._metrics.bases_in_use.set(counts.in_use)
        self._metrics.bases_pinned.set(counts.pinned)
        oldest = counts.oldest_unused
        age = 0.0 if oldest is None else (self._now() - oldest).total_seconds()
        self._metrics.oldest_unused_seconds.set(max(0.0, age))

    async def _measure_space(self) -> None:
        usage = await self._store.usage()
        high, low = self._watermarks(usage)
        self._metrics.filesystem_size_bytes.set(usage.total)
        self._metrics.filesystem_available_bytes.set(usage.available)
        self._metrics.watermark_bytes.labels(level="high").set(high)
        self._metrics.watermark_bytes.labels(level="low").set(low)
        self._metrics.reserved_bytes.set(self._room.reserved)
        self._metrics.partial_bytes.set(await self._store.partial_bytes())
        quarantine = await self._quarantine.contents()
        self._metrics.quarantine_bytes.set(quarantine.allocated)
        self._metrics.quarantine_files.set(len(quarantine.refused))

    def _watermarks(self, usage: SpaceUsage) -> tuple[int, int]:
        """Give the used bytes at which eviction starts, and those at which it ends."""
        eviction = self._config().eviction
        return (
            watermark(eviction.high_watermark, usage.total),
            watermark(eviction.low_watermark, usage.total),
        )
