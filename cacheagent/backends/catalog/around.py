"""A disk with what is told of it: its base, its image, other disks of its instance. In one read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import queries
from cacheagent.model import Base, CachedImage, Disk

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from cacheagent.model import DiskKey, DiskName


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What belongs to a disk, as far as it is known; the image only where there are disks."""

    base: Base | None
    image: CachedImage | None
    disks: tuple[Disk, ...]


def around(db: sqlite3.Connection, disk: Disk, names: Collection[DiskName]) -> Around:
    """Give what belongs to a disk; of the disks of its instance those of these names."""
    keys = (replace(disk.key, name=name) for name in names)
    disks = tuple(found for key in keys if (found := queries.disk(db, key)) is not None)
    image_id = disk.image_id if disks else None
    return Around(
        base=None if disk.base_id is None else queries.base(db, disk.base_id),
        image=None if image_id is None else queries.image(db, image_id),
        disks=disks,
    )


def with_around(
    db: sqlite3.Connection, key: DiskKey, names: Collection[DiskName]
) -> tuple[Disk, Around] | None:
    """Give a disk, and what belongs to it."""
    disk = queries.disk(db, key)
    return None if disk is None else (disk, around(db, disk, names))
