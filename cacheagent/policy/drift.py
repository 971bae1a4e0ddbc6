"""The difference between the catalog and the files, and what to do about it at the start.

The files are the truth. What the catalog has beyond them goes, what it lacks is taken in, and what
a crash left half done is ended. A doubt (a folder or a header that cannot be read, an instances
folder that may not be mounted) keeps everything that it is about.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CachedImage,
    CacheResult,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskState,
    GlanceImage,
    ImageId,
)
from cacheagent.policy.inventory import Inventory, LeftoverKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from cacheagent.policy.inventory import Leftover
    from cacheagent.policy.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogState:
    """All rows of the catalog."""

    bases: tuple[Base, ...] = ()
    images: tuple[CachedImage, ...] = ()
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBase:
    """A file in the folder of the bases: its name, what it takes, and what its manifest says.

    ``manifest`` is None where there is no manifest that can be read.
    """

    base_id: BaseId
    format: DiskFormat
    allocated: int
    manifest: Base | None
    images: tuple[GlanceImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDisk:
    """A disk's file: its name, and what its header says.

    ``backing`` is the base behind it. ``doubtful`` is a file that cannot be read, that is not
    what its name says, or that is backed by something which is no base of ours.
    """

    key: DiskKey
    format: DiskFormat
    virtual_size: int = 0
    backing: BaseId | None = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesState:
    """The files: the inventory, and what was read from its bases and disks."""

    inventory: Inventory
    bases: tuple[FoundBase, ...] = ()
    disks: tuple[FoundDisk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedDisk:
    """A disk that was being made and whose file is complete."""

    key: DiskKey
    virtual_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPlan:
    """What to do, in the order of the fields.

    Rows go first: bases without a file (their images go with them), those whose eviction has
    come as far as the file, disks without a file. Then the rest of the rows is put right, and
    what the files tell is taken in. Files are removed last. ``resume_ingests`` are downloads that
    were asked for and did not end. What ``strays`` (bases without a manifest, second files of one
    disk) and ``unknown`` (not ours) name is left alone, as are disks that are in doubt.
    """

    drop_base_rows: tuple[BaseId, ...] = ()
    finish_evictions: tuple[BaseId, ...] = ()
    drop_disk_rows: tuple[DiskKey, ...] = ()
    revert_evictions: tuple[BaseId, ...] = ()
    adopt_bases: tuple[Base, ...] = ()
    adopt_images: tuple[CachedImage, ...] = ()
    adopt_disks: tuple[Disk, ...] = ()
    finish_disks: tuple[FinishedDisk, ...] = ()
    fail_disks: tuple[DiskKey, ...] = ()
    remove_files: tuple[Path, ...] = ()
    resume_ingests: tuple[ImageId, ...] = ()
    strays: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()
    doubtful_disks: tuple[DiskKey, ...] = ()

    def counts(self) -> Mapping[str, int]:
        """Count the differences by kind, each kind once, with 0 where there is none."""
        evictions = len(self.revert_evictions) + len(self.finish_evictions)
        return {
            "base_unlisted": len(self.adopt_bases),
            "base_missing": len(self.drop_base_rows),
            "disk_unlisted": len(self.adopt_disks),
            "disk_missing": len(self.drop_disk_rows),
            "ingest_stale": len(self.remove_files),
            "state_stale": evictions + len(self.finish_disks) + len(self.fail_disks),
            "unknown_file": len(self.strays) + len(self.unknown),
        }


def diff(layout: Layout, catalog: CatalogState, files: FilesState, now: datetime) -> DriftPlan:
    """Compare rows and files while nothing else works on either; ``now`` dates what is taken in.

    Without a catalog everything comes from the files. A base that is taken in counts as used
    now, since nobody knows better; else the first pass would throw away what came long ago.
    """
    bases = _BasesPlan(catalog, files, now)
    adopted = _adopted_images(files, bases.adopt)
    resume = [
        cached.image.image_id
        for cached in catalog.images
        if cached.base_id is None and cached.image.image_id not in adopted
    ]
    disks = _DisksPlan(catalog, files, _images_by_base(catalog, adopted), now)
    return DriftPlan(
        drop_base_rows=tuple(bases.drop),
        finish_evictions=tuple(bases.finish),
        drop_disk_rows=tuple(disks.drop),
        revert_evictions=tuple(bases.revert),
        adopt_bases=tuple(bases.adopt),
        adopt_images=tuple(adopted.values()),
        adopt_disks=tuple(disks.adopt),
        finish_disks=tuple(disks.finish),
        fail_disks=tuple(disks.fail),
        remove_files=_useless(files, bases, frozenset(resume)),
        resume_ingests=tuple(resume),
        strays=(*_base_paths(layout, bases.strays), *_disk_paths(layout, disks.strays)),
        unknown=files.inventory.unknown,
        doubtful_disks=tuple(disks.doubtful),
    )


class _BasesPlan:
    """Sorts rows and files of bases. Where the folder cannot be read, all rows stay."""

    def __init__(self, catalog: CatalogState, files: FilesState, now: datetime) -> None:
        self.drop: list[BaseId] = []
        self.finish: list[BaseId] = []
        self.revert: list[BaseId] = []
        self.adopt: list[Base] = []
        self.strays: list[FoundBase] = []
        # The bases that the catalog has when the plan is carried out.
        self.known: dict[BaseId, Base] = {}
        self.here = {(found.base_id, found.format) for found in files.bases}
        for row in catalog.bases:
            doubt = not files.inventory.bases_readable
            here = doubt or (row.base_id, row.format) in self.here
            self._sort_row(row, here=here, doubt=doubt)
        # The newest first: of two files with one content, one is the base and the other is none.
        for found in sorted(files.bases, key=_fetched_at, reverse=True):
            self._sort_file(found, now)

    def _sort_row(self, row: Base, *, here: bool, doubt: bool) -> None:
        if row.state is BaseState.READY and not here:
            self.drop.append(row.base_id)
            return
        if row.state is BaseState.EVICTING and not here:
            self.finish.append(row.base_id)
            return
        if row.state is BaseState.EVICTING and not doubt:
            self.revert.append(row.base_id)
        self.known[row.base_id] = row

    def _sort_file(self, found: FoundBase, now: datetime) -> None:
        row = self.known.get(found.base_id)
        base = _taken_in(found, now)
        if row is None and base is not None:
            self.adopt.append(base)
            self.known[base.base_id] = base
        elif row is None or row.format is not found.format:
            self.strays.append(found)


class _DisksPlan:
    """Sorts rows and files of disks, key by key."""

    def __init__(
        self,
        catalog: CatalogState,
        files: FilesState,
        images: Mapping[BaseId, list[ImageId]],
        now: datetime,
    ) -> None:
        self.drop: list[DiskKey] = []
        self.adopt: list[Disk] = []
        self.finish: list[FinishedDisk] = []
        self.fail: list[DiskKey] = []
        self.strays: list[FoundDisk] = []
        self.doubtful: list[DiskKey] = []
        self._inventory = files.inventory
        self._images = images
        self._now = now
        found: dict[DiskKey, list[FoundDisk]] = defaultdict(list)
        for each in files.disks:
            found[each.key].append(each)
        for row in catalog.disks:
            self._sort_row(row, found.pop(row.key, []))
        for candidates in found.values():
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
        elif row.state is DiskState.READY and folders:
            self.drop.append(row.key)
        elif row.state is DiskState.READY:
            # No instance at all: that is how a mount point looks without its file system.
            self.doubtful.append(row.key)

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
            self.adopt.append(self._taken_in(candidates[0]))

    def _taken_in(self, found: FoundDisk) -> Disk:
        blank = found.backing is None
        images = [] if found.backing is None else self._images.get(found.backing, [])
        return Disk(
            key=found.key,
            spec=None,
            state=DiskState.READY,
            format=found.format,
            mode=DiskMode.FULL if blank else DiskMode.OVERLAY,
            virtual_size=found.virtual_size,
            # With two images of one content nobody knows which was asked for.
            image_id=images[0] if len(images) == 1 else None,
            base_id=found.backing,
            cache=CacheResult.BLANK if blank else CacheResult.HIT,
            created_at=self._now,
        )


def _fetched_at(found: FoundBase) -> float:
    return found.manifest.fetched_at.timestamp() if found.manifest else 0.0


def _taken_in(found: FoundBase, now: datetime) -> Base | None:
    """Give the base that the file is; None without a manifest of its own: nothing was proved."""
    base = found.manifest
    if base is None or (base.base_id, base.format) != (found.base_id, found.format):
        return None
    return replace(base, state=BaseState.READY, allocated=found.allocated, last_used_at=now)


def _adopted_images(files: FilesState, bases: Sequence[Base]) -> dict[ImageId, CachedImage]:
    """Give the images that the manifests of these bases name; of two claims the newer holds."""
    images = {(found.base_id, found.format): found.images for found in files.bases}
    return {
        image.image_id: CachedImage(image=image, base_id=base.base_id, requested_at=base.fetched_at)
        for base in sorted(bases, key=attrgetter("fetched_at"))
        for image in images[base.base_id, base.format]
    }


def _images_by_base(
    catalog: CatalogState, adopted: Mapping[ImageId, CachedImage]
) -> Mapping[BaseId, list[ImageId]]:
    """Give the images of each base; what the catalog says of an image counts."""
    claims = {
        cached.image.image_id: cached.base_id
        for cached in (*adopted.values(), *catalog.images)
        if cached.base_id is not None
    }
    images: dict[BaseId, list[ImageId]] = defaultdict(list)
    for image_id, base_id in claims.items():
        images[base_id].append(image_id)
    return images


def _base_paths(layout: Layout, found: Sequence[FoundBase]) -> Iterator[Path]:
    return (layout.base(each.base_id, each.format) for each in found)


def _disk_paths(layout: Layout, found: Sequence[FoundDisk]) -> Iterator[Path]:
    return (layout.disk(each.key, each.format) for each in found)


def _useless(files: FilesState, bases: _BasesPlan, resume: frozenset[ImageId]) -> tuple[Path, ...]:
    """Give the files of ours that serve nothing any more."""
    described = bases.here | {(base.base_id, base.format) for base in bases.known.values()}

    def useful(file: Leftover) -> bool:
        match file.kind:
            case LeftoverKind.PART:
                return file.image_id in resume
            case LeftoverKind.MANIFEST:
                return (file.base_id, file.format) in described
            case LeftoverKind.TEMPLATE:
                # One without a base is made again when it is wanted; else they would pile up.
                return not files.inventory.bases_readable or file.base_id in bases.known
            case _:
                return False

    return tuple(file.path for file in files.inventory.leftovers if not useful(file))
