"""Rows and files of disks, compared."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.model import CacheResult, Disk, DiskKey, DiskMode, DiskState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cacheagent.model import BaseId, ImageId
    from cacheagent.policy.drift.states import CatalogState, FilesState, FoundDisk, Running


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedDisk:
    """A disk that was being made and whose file is complete."""

    key: DiskKey
    virtual_size: int


class DisksPlan:
    """Sorts rows and files of disks, key by key. ``adopt`` are files that no row knows."""

    def __init__(self, catalog: CatalogState, files: FilesState, busy: Running) -> None:
        self.drop: list[DiskKey] = []
        self.adopt: list[FoundDisk] = []
        self.finish: list[FinishedDisk] = []
        self.fail: list[DiskKey] = []
        self.strays: list[FoundDisk] = []
        self.doubtful: list[DiskKey] = []
        self._inventory = files.inventory
        self._unmounted = files.unmounted
        found: dict[DiskKey, list[FoundDisk]] = defaultdict(list)
        for each in files.disks:
            found[each.key].append(each)
        for row in catalog.disks:
            candidates = found.pop(row.key, [])
            if row.key not in busy.disks:
                self._sort_row(row, candidates)
        for key, candidates in found.items():
            if key not in busy.disks:
                self._sort_files(candidates)

    def _sort_row(self, row: Disk, found: list[FoundDisk]) -> None:
        file = next((each for each in found if each.format is row.format), None)
        self.strays += [each for each in found if each is not file]
        if file is None:
            self._sort_row_without_file(row)
        elif file.doubtful:
            self.doubtful.append(row.key)
        elif row.state is DiskState.PENDING and self._was_made(row, file):
            self.finish.append(FinishedDisk(key=row.key, virtual_size=file.virtual_size))
        elif row.state is not DiskState.READY:
            # A file of somebody else at the name of a disk that was never made.
            self.strays.append(file)
            if row.state is DiskState.PENDING:
                self.fail.append(row.key)

    def _sort_row_without_file(self, row: Disk) -> None:
        folders = self._inventory.instance_folders
        if folders is None or row.key.instance_id in self._inventory.unreadable_instances:
            self.doubtful.append(row.key)
        elif row.state is DiskState.PENDING:
            self.fail.append(row.key)
        elif row.state is DiskState.READY and self._unmounted:
            self.doubtful.append(row.key)
        elif row.state is DiskState.READY:
            self.drop.append(row.key)

    def _was_made(self, row: Disk, file: FoundDisk) -> bool:
        """Tell whether the file is what was being made: it has its name, so it is complete."""
        backing = row.base_id if row.mode is DiskMode.OVERLAY else None
        return (file.backing, file.virtual_size) == (backing, row.virtual_size)

    def _sort_files(self, candidates: list[FoundDisk]) -> None:
        if len(candidates) > 1:
            self.strays += candidates
        elif candidates[0].doubtful:
            self.doubtful.append(candidates[0].key)
        else:
            self.adopt.append(candidates[0])

    def needed_bases(self, catalog: CatalogState) -> frozenset[BaseId]:
        """Give the bases that disks cannot do without, when the plan was carried out."""
        over = {*self.drop, *self.fail}
        kept = {disk.base_id for disk in catalog.disks if disk.needs_base and disk.key not in over}
        needed = kept | {found.backing for found in self.adopt}
        return frozenset(base_id for base_id in needed if base_id is not None)


def taken_in(found: FoundDisk, images: Mapping[BaseId, list[ImageId]], now: datetime) -> Disk:
    """Give the disk that the file is; ``images`` are those of each base."""
    blank = found.backing is None
    known = [] if found.backing is None else images.get(found.backing, [])
    return Disk(
        key=found.key,
        spec=None,
        state=DiskState.READY,
        format=found.format,
        mode=DiskMode.FULL if blank else DiskMode.OVERLAY,
        virtual_size=found.virtual_size,
        # With two images of one content nobody knows which was asked for.
        image_id=known[0] if len(known) == 1 else None,
        base_id=found.backing,
        cache=CacheResult.BLANK if blank else CacheResult.HIT,
        created_at=now,
    )
