"""Disks before they are there: as they are asked for, as they will be, and what tells two apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cacheagent.errors import DiskConflictError
from cacheagent.model import CacheResult, Disk, DiskState
from cacheagent.policy.boot import keeps_length
from cacheagent.policy.sizing import disk_size, whole_sectors

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from cacheagent.backends.catalog import Catalog
    from cacheagent.model import DiskKey, DiskSpec
    from cacheagent.service.bases import Ensured


def pending(key: DiskKey, spec: DiskSpec, now: datetime) -> Disk:
    """Give a disk that is asked for and not there, before anything is known of its base."""
    return Disk(
        key=key,
        spec=spec,
        state=DiskState.PENDING,
        format=spec.format,
        mode=spec.mode,
        virtual_size=0,
        image_id=spec.image_id,
        base_id=None,
        cache=CacheResult.BLANK if spec.image_id is None else CacheResult.MISS,
        created_at=now,
    )


def intended(disk: Disk, spec: DiskSpec, ensured: Ensured | None) -> Disk:
    """Give the disk that is asked for as it will be.

    Raises:
        DiskTooSmallError: the size asked for breaks the size rules.

    """
    if ensured is None:
        return replace(disk, virtual_size=whole_sectors(spec.size or 0))
    if keeps_length(disk.key.name, spec, ensured.image):
        size = ensured.base.size
    else:
        size = disk_size(
            spec.size,
            virtual_size=ensured.base.virtual_size,
            min_disk=ensured.image.min_disk_bytes,
        )
    return replace(disk, virtual_size=size, base_id=ensured.base.base_id, cache=ensured.result)


async def is_meant(disk: Disk, spec: DiskSpec, catalog: Catalog) -> bool:
    """Tell whether ``spec`` means this disk; one that was adopted is judged by what it is."""
    if spec.size is not None and whole_sectors(spec.size) == disk.virtual_size:
        spec = replace(spec, size=disk.spec.size if disk.spec else None)
    if disk.spec is not None:
        return disk.spec == spec
    cached = None if spec.image_id is None else await catalog.image(spec.image_id)
    base_id = None if cached is None else cached.base_id
    found = (disk.format, disk.mode, disk.base_id, None)
    return found == (spec.format, spec.mode, base_id, spec.size)


def conflict(disk: Disk) -> DiskConflictError:
    """Give the refusal of a request whose name stands for this disk."""
    key = disk.key
    message = f"disk {key.name} of instance {key.instance_id} is another one"
    return DiskConflictError(message, facts(disk))


def not_ours(path: Path) -> DiskConflictError:
    """Give the refusal of a request whose name somebody else's file has."""
    return DiskConflictError(f"{path} is there, and not ours", {"path": str(path)})


def facts(disk: Disk) -> dict[str, object]:
    """Give what tells the disk from another one, by the names that the API uses."""
    found: dict[str, object] = {
        "image_id": disk.image_id,
        "format": disk.format,
        "mode": disk.mode,
        "virtual_size_bytes": disk.virtual_size,
    }
    if disk.spec is not None:
        found |= {"size_bytes": disk.spec.size}
    if disk.spec is not None and disk.image_id is None:
        found |= {"filesystem": disk.spec.filesystem, "label": disk.spec.label}
    return found
