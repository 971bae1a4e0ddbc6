"""Differences are mended: all at once while nobody is served, else each under its own lock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from cacheagent.backends.store import Manifest, spare
from cacheagent.backends.store.leftovers import identities, remove_same
from cacheagent.errors import CacheAgentError, DiskFullError
from cacheagent.model import BaseState
from cacheagent.policy.drift import CatalogState, DriftPlan, diff, merged
from cacheagent.service.events import EventKind
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cacheagent.backends.store.leftovers import Identity
    from cacheagent.model import BaseId, DiskKey, ImageId
    from cacheagent.policy.drift import FilesState
    from cacheagent.policy.inventory import Leftover
    from cacheagent.service.bases import Bases
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts
    from cacheagent.service.repair import Repair
    from cacheagent.service.survey import Survey

T = TypeVar("T")

SETTLED = 300.0
"""Seconds for which nobody touches a useless file before it goes: what is being made is touched."""

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
        self._clock = parts.clock
        # Useless files as the round before saw them, and since when they are the same.
        self._useless: Mapping[Path, tuple[Identity, float]] = {}

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

    async def one_by_one(self, plan: DriftPlan, files: FilesState) -> DriftPlan:
        """Carry the plan out while requests are served: look again under each lock.

        Gives what was still different, and so was mended. What somebody works on is left to the
        next round. A useless file goes when it was the same for so long as ``SETTLED`` says.
        """
        mended = [await self._guarded(work) for work in self._works(plan, files)]
        mended += await self._sweep(plan, files)
        return merged(each for each in mended if each is not None)

    def _works(self, plan: DriftPlan, files: FilesState) -> Iterator[Awaitable[DriftPlan | None]]:
        adopted = (disk.key for disk in plan.adopt_disks)
        finished = (disk.key for disk in plan.finish_disks)
        yield from (self._notice(key) for key in plan.drop_disk_rows)
        yield from (self._disk(key, files) for key in (*adopted, *finished, *plan.fail_disks))
        yield from (self._base(base_id, files, {}) for base_id in _bases_of(plan))
        yield from (self._lost(base_id) for base_id in (*plan.drop_base_rows, *plan.lost_bases))

    async def _guarded(self, work: Awaitable[T]) -> T | None:
        """Do one of many things: what it meets is not to keep the others from being done."""
        try:
            return await work
        except (CacheAgentError, OSError) as error:
            _log.warning("a difference could not be mended", why=str(error))
            return None

    async def _mend(self, plan: DriftPlan) -> None:
        if plan == DriftPlan():
            # What differed when all was looked at was somebody's work, which is done.
            return
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

    async def _notice(self, key: DiskKey) -> DriftPlan | None:
        gone = await self._creation.notice(key)
        return DriftPlan(drop_disk_rows=(key,)) if gone else None

    async def _disk(self, key: DiskKey, files: FilesState) -> DriftPlan | None:
        if key in self._creation.wanted():
            return None
        # A creation takes the lock after it has become wanted, so this waits for a removal at most.
        async with self._creation.alone(key):
            if key in self._creation.wanted():
                return None
            return await uninterrupted(self._mend_disk(key, files))

    async def _mend_disk(self, key: DiskKey, files: FilesState) -> DriftPlan:
        row = await self._catalog.disk(key)
        rows = CatalogState(
            images=tuple(await self._catalog.images()), disks=() if row is None else (row,)
        )
        again = await self._survey.disk(key, files.inventory)
        found = diff(self._store.layout, rows, again, self._now())
        # One whose file has gone meanwhile is noticed in the next round.
        plan = DriftPlan(
            adopt_disks=found.adopt_disks,
            finish_disks=found.finish_disks,
            fail_disks=found.fail_disks,
        )
        await self._mend(plan)
        for failed in plan.fail_disks:
            names = {"instance_id": failed.instance_id, "name": failed.name}
            self._events.emit(EventKind.DISK_FAILED, **names, error=STOPPED)
        for disk in plan.adopt_disks:
            names = {"instance_id": disk.key.instance_id, "name": disk.key.name}
            path = str(self._store.layout.disk(disk.key, disk.format))
            facts = {"image_id": disk.image_id, "base_id": disk.base_id, "path": path}
            self._events.emit(EventKind.DISK_CREATED, **names, **facts, reason="found")
        return plan

    async def _base(
        self, base_id: BaseId, files: FilesState, due: Mapping[Path, Identity]
    ) -> DriftPlan | None:
        """Look again at one base, and mend what differs; of its useless files ``due`` go."""
        # Who finds the lock held takes the base for used: it is taken for what is really there.
        if not due and not _bases_of(await self._look_at_base(base_id, files)):
            return None
        if self._bases.locks.held(base_id):
            return None
        async with self._bases.locks.hold(base_id):
            return await uninterrupted(self._mend_base(base_id, files, due))

    async def _look_at_base(self, base_id: BaseId, files: FilesState) -> DriftPlan:
        row = await self._catalog.base(base_id)
        rows = CatalogState(
            bases=() if row is None else (row,),
            images=tuple(await self._catalog.images_of(base_id)),
        )
        again = await self._survey.base(base_id, files.inventory)
        return diff(self._store.layout, rows, again, self._now())

    async def _mend_base(
        self, base_id: BaseId, files: FilesState, due: Mapping[Path, Identity]
    ) -> DriftPlan:
        found = await self._look_at_base(base_id, files)
        # One without its file is for the repair, which takes the lock itself.
        plan = replace(found, drop_base_rows=(), lost_bases=(), strays=(), unproved_bases=())
        await self._mend(plan)
        useless = {path: due[path] for path in found.remove_files if path in due}
        return replace(plan, remove_files=await self._store.run(remove_same, useless))

    async def _lost(self, base_id: BaseId) -> DriftPlan | None:
        if self._bases.locks.held(base_id) or base_id in self._repair.fetching():
            return None
        base = await self._catalog.base(base_id)
        if base is None or base.state is not BaseState.READY:
            return None
        await self._repair.lost(base)
        return DriftPlan(lost_bases=(base_id,))

    # --- useless files -------------------------------------------------------------------------

    async def _sweep(self, plan: DriftPlan, files: FilesState) -> list[DriftPlan | None]:
        due = await self._due(plan, files)
        by_base: dict[BaseId, dict[Path, Identity]] = defaultdict(dict)
        by_image: dict[ImageId, list[Path]] = defaultdict(list)
        swept: list[DriftPlan | None] = []
        for each in due:
            if each.base_id is not None:
                by_base[each.base_id][each.path] = self._useless[each.path][0]
            elif each.image_id is not None:
                by_image[each.image_id].append(each.path)
            else:
                swept.append(await self._guarded(self._remove(each)))
        for base_id, paths in by_base.items():
            swept.append(await self._guarded(self._base(base_id, files, paths)))
        for image_id, left in by_image.items():
            swept.append(await self._guarded(self._forget(image_id, left)))
        return swept

    async def _due(self, plan: DriftPlan, files: FilesState) -> Sequence[Leftover]:
        """Give the useless files that have settled, after a look at what they are now."""
        now, before = self._clock(), self._useless
        seen = await self._store.run_long(identities, plan.remove_files)
        self._useless = {
            path: known if (known := before.get(path)) and known[0] == identity else (identity, now)
            for path, identity in seen.items()
        }
        settled = {path for path, (_, since) in self._useless.items() if now - since >= SETTLED}
        return [each for each in files.inventory.leftovers if each.path in settled]

    async def _forget(self, image_id: ImageId, left: Sequence[Path]) -> DriftPlan | None:
        if image_id in self._bases.coming():
            return None
        await self._bases.forget(image_id)
        return DriftPlan(remove_files=tuple(left))

    async def _remove(self, file: Leftover) -> DriftPlan | None:
        """Remove what is of no base: what a disk was to become, or an unfinished template."""
        known = {file.path: self._useless[file.path][0]}
        if file.key is None:
            return DriftPlan(remove_files=await self._store.run(remove_same, known))
        if file.key in self._creation.wanted():
            return None
        async with self._creation.alone(file.key):
            return DriftPlan(remove_files=await self._store.run(remove_same, known))


def _bases_of(plan: DriftPlan) -> Sequence[BaseId]:
    """Give the bases of which something is to be mended, each once."""
    moved = (base_id for base_id, _ in (*plan.restore_bases, *plan.quarantine_bases))
    adopted = (base.base_id for base in plan.adopt_bases)
    stale = (*plan.finish_evictions, *plan.revert_evictions, *plan.write_manifests)
    return tuple(dict.fromkeys((*moved, *adopted, *stale)))
