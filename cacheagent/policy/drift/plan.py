"""The plan that makes rows and files agree."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.model import Base, BaseId, CachedImage, Disk, DiskFormat, DiskKey, ImageId
from cacheagent.policy.drift.bases import BasesPlan, adopted_images
from cacheagent.policy.drift.disks import DisksPlan, FinishedDisk, taken_in
from cacheagent.policy.drift.leftovers import Useless
from cacheagent.policy.drift.states import CatalogState, FilesState, FoundBase, FoundDisk, Running

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from cacheagent.policy.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPlan:
    """What to do, in the order of the fields.

    Files first: bases come back from the trash that somebody uses, damaged ones go where they
    belong. Then rows go: bases without a
    file (their images go with them), those whose eviction has come as far as the file, disks
    without a file. Then the rest of the rows is put right, and what the files tell is taken in.
    Files are removed last.

    ``lost_bases`` have no file, or one of another length, while disks may need them: they are for
    the repair. ``unproved_bases`` are files without a manifest, which their digest may prove;
    ``write_manifests`` are bases that have lost theirs. ``resume_ingests`` are downloads that were
    asked for and did not end. What ``strays`` (bases without a manifest, second files of one
    disk) and ``unknown`` (not ours) name is left alone, as are disks that are in doubt.
    """

    restore_bases: tuple[tuple[BaseId, DiskFormat], ...] = ()
    quarantine_bases: tuple[tuple[BaseId, DiskFormat], ...] = ()
    drop_base_rows: tuple[BaseId, ...] = ()
    finish_evictions: tuple[BaseId, ...] = ()
    drop_disk_rows: tuple[DiskKey, ...] = ()
    revert_evictions: tuple[BaseId, ...] = ()
    adopt_bases: tuple[Base, ...] = ()
    adopt_images: tuple[CachedImage, ...] = ()
    adopt_disks: tuple[Disk, ...] = ()
    finish_disks: tuple[FinishedDisk, ...] = ()
    fail_disks: tuple[DiskKey, ...] = ()
    write_manifests: tuple[BaseId, ...] = ()
    remove_files: tuple[Path, ...] = ()
    lost_bases: tuple[BaseId, ...] = ()
    resume_ingests: tuple[ImageId, ...] = ()
    unproved_bases: tuple[tuple[BaseId, DiskFormat], ...] = ()
    strays: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()
    doubtful_disks: tuple[DiskKey, ...] = ()

    def counts(self) -> Mapping[str, int]:
        """Count the differences by kind, each kind once, with 0 where there is none."""
        evictions = len(self.revert_evictions) + len(self.finish_evictions)
        moves = len(self.restore_bases) + len(self.quarantine_bases)
        bases = evictions + moves + len(self.write_manifests)
        return {
            "base_unlisted": len(self.adopt_bases),
            "base_missing": len(self.drop_base_rows) + len(self.lost_bases),
            "disk_unlisted": len(self.adopt_disks),
            "disk_missing": len(self.drop_disk_rows),
            "ingest_stale": len(self.remove_files),
            "state_stale": bases + len(self.finish_disks) + len(self.fail_disks),
            "unknown_file": len(self.strays) + len(self.unknown),
            "doubt": len(self.doubtful_disks),
        }


def merged(plans: Iterable[DriftPlan]) -> DriftPlan:
    """Give one plan of all that these plans have."""
    every = tuple(plans)
    return DriftPlan(
        **{
            field.name: tuple(each for plan in every for each in getattr(plan, field.name))
            for field in fields(DriftPlan)
        }
    )


def diff(
    layout: Layout,
    catalog: CatalogState,
    files: FilesState,
    now: datetime,
    running: Running | None = None,
) -> DriftPlan:
    """Compare rows and files; ``now`` dates what is taken in.

    ``running`` None is for the start, while nothing else works on either. Without a catalog
    everything comes from the files. A base that is taken in counts as used now, since nobody knows
    better; else the first pass would throw away what came long ago. A base that cannot be looked at
    is left alone like one that somebody works on.
    """
    busy = running or Running()
    doubtful = (found.base_id for found in (*files.bases, *files.wanted_trash) if found.doubtful)
    busy = replace(busy, bases=busy.bases.union(doubtful))
    disks = DisksPlan(catalog, files, busy)
    bases = BasesPlan(catalog, files, busy, disks.needed_bases(catalog), now)
    adopted = adopted_images(bases)
    images = _images_by_base(catalog, adopted)
    resume = [
        cached.image.image_id
        for cached in catalog.images
        if cached.base_id is None and cached.image.image_id not in adopted
    ]
    useless = Useless(files, bases, frozenset(resume), busy, at_start=running is None)
    return DriftPlan(
        restore_bases=tuple(bases.restore),
        quarantine_bases=tuple(bases.quarantine),
        drop_base_rows=tuple(bases.drop),
        finish_evictions=tuple(bases.finish),
        drop_disk_rows=tuple(disks.drop),
        revert_evictions=tuple(bases.revert),
        adopt_bases=tuple(bases.adopt),
        adopt_images=tuple(adopted.values()),
        adopt_disks=tuple(taken_in(found, images, now) for found in disks.adopt),
        finish_disks=tuple(disks.finish),
        fail_disks=tuple(disks.fail),
        write_manifests=tuple(bases.undescribed),
        remove_files=useless.paths(),
        lost_bases=tuple(bases.lost),
        resume_ingests=tuple(resume),
        unproved_bases=tuple(bases.unproved),
        strays=(*_base_paths(layout, bases.strays), *_disk_paths(layout, disks.strays)),
        unknown=files.inventory.unknown,
        doubtful_disks=tuple(disks.doubtful),
    )


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
