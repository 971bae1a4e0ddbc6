"""Differences are mended: all at once while nobody is served, else each under its own lock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import Manifest, spare
from cacheagent.backends.store.leftovers import identities, remove_same
from cacheagent.errors import CacheAgentError, DiskFullError
from cacheagent.policy.drift import CatalogState, diff
from cacheagent.service.events import EventKind
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from pathlib import Path

    from cacheagent.backends.store.leftovers import Identity
    from cacheagent.model import BaseId, DiskKey
    from cacheagent.policy.drift import DriftPlan, FilesState
    from cacheagent.policy.inventory import Leftover
    from cacheagent.service.bases import Bases
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts
    from cacheagent.service.repair import Repair
    from cacheagent.service.survey import Survey

STOPPED = "the agent stopped before the disk was made; ask for it again"

_log = structlog.get_logger(__name__)


class Mending:
    """Carries drift plans out."""

    def __init__(
        self, parts: Parts, *, bases: Bases, creation: Creation, repair: Repair, survey: Survey
    ) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._events = parts.events
        self._now = parts.now
        self._bases = bases
        self._creation = creation
        self._repair = repair
        self._survey = survey
        # Useless files that the round before saw, as they were then.
        self._useless: Mapping[Path, Identity] = {}

    async def all_at_once(self, plan: DriftPlan, files: FilesState) -> None:
        """Carry the plan out while nothing else works on rows and files."""
        try:
            await self._mend(plan)
        except DiskFullError:
            # The catalog needs some pages, and what goes anyway may be all the room there is.
            await self._store.remove(plan.remove_files)
            await self._store.run(spare.spend, self._store.layout.spare)
            await self._mend(plan)
        for key in plan.drop_disk_rows:
            if key.instance_id in (files.inventory.instance_folders or ()):
                await self._clear_away(key)
        await self._store.remove(plan.remove_files)

    async def one_by_one(self, plan: DriftPlan, files: FilesState) -> None:
        """Carry the plan out while requests are served: look again under each lock.

        What somebody works on is left to the next round. A useless file goes in the second round
        that finds it, if it was not touched since the first.
        """
        for key in plan.drop_disk_rows:
            await self._guarded(self._creation.notice(key))
        adopted = (disk.key for disk in plan.adopt_disks)
        finished = (disk.key for disk in plan.finish_disks)
        for key in (*adopted, *finished, *plan.fail_disks):
            await self._guarded(self._disk(key, files))
        for base_id in _bases_of(plan):
            await self._guarded(self._base(base_id, files))
        for base_id in (*plan.drop_base_rows, *plan.lost_bases):
            await self._guarded(self._lost(base_id))
        await self._sweep(plan, files)

    async def _guarded(self, work: Awaitable[object]) -> None:
        """Do one of many things: what it meets is not to keep the others from being done."""
        try:
            await work
        except (CacheAgentError, OSError) as error:
            _log.warning("a difference could not be mended", why=str(error))

    async def _mend(self, plan: DriftPlan) -> None:
        for name in plan.restore_bases:
            await self._store.restore_base(*name)
        for name in plan.quarantine_bases:
            await self._store.quarantine_base(*name)
        await self._catalog.mend(plan, self._now(), STOPPED)
        for base_id in plan.write_manifests:
            await self._guarded(self._write_manifest(base_id))

    async def _write_manifest(self, base_id: BaseId) -> None:
        base = await self._catalog.base(base_id)
        if base is not None:
            images = await self._catalog.images_of(base_id)
            known = tuple(cached.image for cached in images)
            await self._store.write_manifest(Manifest(base=base, images=known))

    async def _clear_away(self, key: DiskKey) -> None:
        """Remove the empty folder that a removal of the disk has left when it was cut off."""
        try:
            await self._store.abandon_disk(key)
        except OSError as error:
            _log.warning("a folder is left", instance_id=key.instance_id, why=str(error))

    # --- one by one ----------------------------------------------------------------------------

    async def _disk(self, key: DiskKey, files: FilesState) -> None:
        if key in self._creation.wanted():
            return
        # A creation takes the lock after it has become wanted, so this waits for a removal at most.
        async with self._creation.alone(key):
            if key not in self._creation.wanted():
                await uninterrupted(self._mend_disk(key, files))

    async def _mend_disk(self, key: DiskKey, files: FilesState) -> None:
        row = await self._catalog.disk(key)
        rows = CatalogState(
            images=tuple(await self._catalog.images()), disks=() if row is None else (row,)
        )
        again = await self._survey.disk(key, files.inventory)
        plan = diff(self._store.layout, rows, again, self._now())
        # One whose file has gone meanwhile is noticed in the next round.
        await self._catalog.mend(replace(plan, drop_disk_rows=()), self._now(), STOPPED)
        for failed in plan.fail_disks:
            names = {"instance_id": failed.instance_id, "name": failed.name}
            self._events.emit(EventKind.DISK_FAILED, **names, error=STOPPED)

    async def _base(
        self, base_id: BaseId, files: FilesState, due: Mapping[Path, Identity] | None = None
    ) -> None:
        """Look again at one base, and mend what differs; of its useless files ``due`` go."""
        if self._bases.locks.held(base_id):
            return
        async with self._bases.locks.hold(base_id):
            await uninterrupted(self._mend_base(base_id, files, due or {}))

    async def _mend_base(
        self, base_id: BaseId, files: FilesState, due: Mapping[Path, Identity]
    ) -> None:
        row = await self._catalog.base(base_id)
        rows = CatalogState(
            bases=() if row is None else (row,),
            images=tuple(await self._catalog.images_of(base_id)),
            disks=tuple(await self._catalog.disks_of_base(base_id)),
        )
        again = await self._survey.base(base_id, files.inventory)
        plan = diff(self._store.layout, rows, again, self._now())
        only_base = replace(plan, drop_base_rows=(), drop_disk_rows=(), fail_disks=())
        await self._mend(only_base)
        useless = {path: due[path] for path in plan.remove_files if path in due}
        await self._store.run(remove_same, useless)

    async def _lost(self, base_id: BaseId) -> None:
        base = await self._catalog.base(base_id)
        if base is not None and not self._bases.locks.held(base_id):
            await self._repair.lost(base)

    # --- useless files -------------------------------------------------------------------------

    async def _sweep(self, plan: DriftPlan, files: FilesState) -> None:
        before, useless = self._useless, frozenset(plan.remove_files)
        self._useless = await self._store.run_long(identities, useless)
        due = [
            each
            for each in files.inventory.leftovers
            if each.path in useless and self._is_due(each.path, before)
        ]
        by_base: dict[BaseId, dict[Path, Identity]] = defaultdict(dict)
        for each in due:
            if each.base_id is not None:
                by_base[each.base_id][each.path] = self._useless[each.path]
        for base_id, paths in by_base.items():
            await self._guarded(self._base(base_id, files, paths))
        for image_id in {each.image_id for each in due if each.image_id is not None}:
            if image_id not in self._bases.coming():
                await self._guarded(self._bases.forget(image_id))
        for each in due:
            if each.base_id is None and each.image_id is None:
                await self._guarded(self._remove(each))

    def _is_due(self, path: Path, before: Mapping[Path, Identity]) -> bool:
        now = self._useless.get(path)
        return now is not None and before.get(path) == now

    async def _remove(self, file: Leftover) -> None:
        """Remove what is of no base: what a disk was to become, or an unfinished template."""
        known = {file.path: self._useless[file.path]}
        if file.key is None:
            await self._store.run(remove_same, known)
        elif file.key not in self._creation.wanted():
            async with self._creation.alone(file.key):
                await self._store.run(remove_same, known)


def _bases_of(plan: DriftPlan) -> Sequence[BaseId]:
    """Give the bases of which something is to be mended, each once."""
    moved = (base_id for base_id, _ in (*plan.restore_bases, *plan.quarantine_bases))
    adopted = (base.base_id for base in plan.adopt_bases)
    stale = (*plan.finish_evictions, *plan.revert_evictions, *plan.write_manifests)
    return tuple(dict.fromkeys((*moved, *adopted, *stale)))
