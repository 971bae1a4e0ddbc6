"""Files and catalog are made to agree: read both, let the policy compare, carry its plan out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends import qcow2
from cacheagent.errors import NotQcow2Error
from cacheagent.model import BaseState, Caller, DiskFormat
from cacheagent.policy import inventory
from cacheagent.policy.drift import CatalogState, FilesState, FoundBase, FoundDisk, diff
from cacheagent.policy.sizing import whole_sectors

if TYPE_CHECKING:
    from datetime import datetime

    from cacheagent.model import BaseId, DiskKey
    from cacheagent.policy.drift import DriftPlan
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts

STOPPED = "the agent stopped before the disk was made; ask for it again"

_log = structlog.get_logger(__name__)


class Reconcile:
    """Compares what the catalog says with what lies on disk, and mends the difference."""

    def __init__(self, parts: Parts, *, bases: Bases) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._background = parts.background
        self._metrics = parts.metrics
        self._bases = bases

    async def run(self, now: datetime) -> DriftPlan:
        """Compare and mend; nothing else may use the catalog meanwhile. Give what was done."""
        catalog = CatalogState(
            bases=tuple(await self._catalog.bases()),
            images=tuple(await self._catalog.images()),
            disks=tuple(await self._catalog.disks()),
        )
        plan = diff(self._store.layout, catalog, await self._files(), now)
        await self._mend_rows(plan)
        await self._adopt(plan)
        await self._store.remove(plan.remove_files)
        self._tell(plan)
        for image_id in plan.resume_ingests:
            work = self._bases.ensure(image_id, Caller())
            self._background.start(work, f"resumption of image {image_id}")
        return plan

    async def _files(self) -> FilesState:
        layout = self._store.layout
        found = inventory.take(layout, await self._store.listing())
        return FilesState(
            inventory=found,
            bases=tuple([await self._base(*name) for name in found.bases]),
            disks=tuple([await self._store.run(self._disk, *name) for name in found.disks]),
        )

    async def _base(self, base_id: BaseId, disk_format: DiskFormat) -> FoundBase:
        manifest = await self._store.read_manifest(base_id, disk_format)
        return FoundBase(
            base_id=base_id,
            format=disk_format,
            allocated=await self._store.allocated(self._store.layout.base(base_id, disk_format)),
            manifest=None if manifest is None else manifest.base,
            images=() if manifest is None else manifest.images,
        )

    def _disk(self, key: DiskKey, disk_format: DiskFormat) -> FoundDisk:
        """Look at a disk, which a guest may have written: at its header, never at its content."""
        path = self._store.layout.disk(key, disk_format)
        try:
            if disk_format is DiskFormat.RAW:
                size = path.lstat().st_size
                # A disk is whole sectors long; anything else was not made by us.
                doubtful = size == 0 or size != whole_sectors(size)
                return FoundDisk(key=key, format=disk_format, virtual_size=size, doubtful=doubtful)
            header = qcow2.read_header(path, follow_symlinks=False)
        except (OSError, NotQcow2Error) as error:
            _log.warning("a disk cannot be read", path=str(path), why=str(error))
            return FoundDisk(key=key, format=disk_format, doubtful=True)
        base = None
        if header.backing_file is not None:
            base = self._store.layout.base_of(_absolute(path, header.backing_file))
        return FoundDisk(
            key=key,
            format=disk_format,
            virtual_size=header.virtual_size,
            backing=None if base is None else base[0],
            doubtful=header.external_data_file or (header.backing_file is not None) != bool(base),
        )

    async def _mend_rows(self, plan: DriftPlan) -> None:
        now = self._now()
        for base_id in (*plan.drop_base_rows, *plan.finish_evictions):
            await self._catalog.remove_base(base_id)
        for key in plan.drop_disk_rows:
            await self._clear_away(key)
            await self._catalog.remove_disk(key, now)
        for base_id in plan.revert_evictions:
            await self._catalog.set_base_state(base_id, BaseState.READY)

    async def _clear_away(self, key: DiskKey) -> None:
        """Remove the empty folder that a removal of the disk has left when it was cut off."""
        try:
            await self._store.abandon_disk(key)
        except OSError as error:
            _log.warning("a folder is left", instance_id=key.instance_id, why=str(error))

    async def _adopt(self, plan: DriftPlan) -> None:
        await self._catalog.adopt(
            bases=plan.adopt_bases, images=plan.adopt_images, disks=plan.adopt_disks
        )
        now = self._now()
        for disk in plan.finish_disks:
            await self._catalog.finish_disk(disk.key, virtual_size=disk.virtual_size, now=now)
        for key in plan.fail_disks:
            await self._catalog.fail_disk(key, STOPPED)

    def _tell(self, plan: DriftPlan) -> None:
        counts = plan.counts()
        for kind, count in counts.items():
            self._metrics.reconcile_drift_total.labels(kind=kind).inc(count)
        self._metrics.unknown_files.set(len(plan.strays) + len(plan.unknown))
        _log.info("reconciled", **counts)
        for path in (*plan.strays, *plan.unknown):
            _log.warning("a file that is not ours is left alone", path=str(path))


def _absolute(overlay: Path, backing_file: str) -> Path:
    """Give the path that a backing file's name means; it may name nothing of ours."""
    # Not resolved: a name that leads to a base by a detour is left to the proof of use.
    return Path(os.path.normpath(overlay.parent / backing_file))
