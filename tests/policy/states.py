"""Catalogs and files to compare, made of a few values."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cacheagent.model import (
    Base,
    CachedImage,
    Disk,
    DiskFormat,
    DiskKey,
    GlanceImage,
)
from cacheagent.policy.drift import (
    CatalogState,
    DriftPlan,
    FilesState,
    FoundBase,
    FoundDisk,
    Running,
    diff,
)
from cacheagent.policy.inventory import Inventory, Leftover
from cacheagent.policy.layout import Layout
from cacheagent.policy.verification import is_as_it_came
from tests.fakes.values import NOW, base_id, disk_key, glance_image, instance_id

LAYOUT = Layout(state_dir=Path("/state"), instances_dir=Path("/instances"))
LATER = NOW + timedelta(days=30)
RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
KEY = disk_key(1)
NOTHING = DriftPlan()


def files_state(
    *found: FoundBase | FoundDisk,
    leftovers: tuple[Leftover, ...] = (),
    unknown: tuple[Path, ...] = (),
    bases_readable: bool = True,
    instances: tuple[int, ...] | None = (1, 2),
    unreadable: tuple[int, ...] = (),
    wanted_trash: tuple[FoundBase, ...] = (),
) -> FilesState:
    """Give files: these bases and disks, two instances' folders, and whatever else is told."""
    bases = tuple(each for each in found if isinstance(each, FoundBase))
    disks = tuple(each for each in found if isinstance(each, FoundDisk))
    inventory = Inventory(
        bases_readable=bases_readable,
        bases=tuple((each.base_id, each.format) for each in bases),
        instance_folders=None if instances is None else frozenset(map(instance_id, instances)),
        unreadable_instances=frozenset(map(instance_id, unreadable)),
        disks=tuple((each.key, each.format) for each in disks),
        leftovers=leftovers,
        unknown=unknown,
    )
    return FilesState(inventory=inventory, bases=bases, disks=disks, wanted_trash=wanted_trash)


def found_base(row: Base, *images: GlanceImage) -> FoundBase:
    """Give the file of a base with its manifest."""
    return FoundBase(
        base_id=row.base_id,
        format=row.format,
        length=row.size if is_as_it_came(row) else row.virtual_size,
        allocated=row.allocated,
        manifest=row,
        images=images,
    )


def found_overlay(key: DiskKey = KEY, backing: int | None = 1) -> FoundDisk:
    """Give the file of an overlay of the base of this number; None: of a blank disk."""
    return FoundDisk(
        key=key,
        format=QCOW2,
        virtual_size=2 << 30,
        backing=None if backing is None else base_id(backing),
    )


def catalog_state(*rows: Base | CachedImage | Disk) -> CatalogState:
    """Give a catalog with these rows."""
    return CatalogState(
        bases=tuple(row for row in rows if isinstance(row, Base)),
        images=tuple(row for row in rows if isinstance(row, CachedImage)),
        disks=tuple(row for row in rows if isinstance(row, Disk)),
    )


def cached_image(number: int, base_number: int | None) -> CachedImage:
    """Give the row of an image that stands for the base of this number; None: of an intent."""
    of = None if base_number is None else base_id(base_number)
    return CachedImage(image=glance_image(number), base_id=of, requested_at=NOW)


def plan(catalog: CatalogState, files: FilesState, running: Running | None = None) -> DriftPlan:
    """Compare them, a month later; ``running`` None is the start."""
    return diff(LAYOUT, catalog, files, LATER, running)
