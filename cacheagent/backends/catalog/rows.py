"""Values of the model to rows of the tables, and back.

Times are text in UTC with microseconds, so that they sort as they follow each other. What Glance
said of an image and what a scheduler asked for are JSON: nothing searches in them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CachedImage,
    CacheResult,
    Digest,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskName,
    DiskSpec,
    DiskState,
    GlanceImage,
    ImageId,
    ImageSignature,
    InstanceId,
    Lease,
    Standing,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

_IMAGE = TypeAdapter(GlanceImage)
_SIGNATURES = TypeAdapter(tuple[ImageSignature, ...])
_SPEC = TypeAdapter(DiskSpec)


def stamp(when: datetime) -> str:
    """Write a time so that later ones sort after it."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def digest(value: Digest) -> str:
    """Write a digest."""
    return f"{value.algorithm}:{value.hex}"


def description(image: GlanceImage) -> str:
    """Write what Glance says of an image."""
    return _IMAGE.dump_json(image).decode()


def signatures(checked: tuple[ImageSignature, ...]) -> str:
    """Write the signatures that hold for a base."""
    return _SIGNATURES.dump_json(checked).decode()


def base_row(base: Base) -> Mapping[str, object]:
    """Give the columns of a base."""
    return {
        "base_id": base.base_id,
        "state": base.state,
        "format": base.format,
        "source_format": base.source_format,
        "size": base.size,
        "virtual_size": base.virtual_size,
        "allocated": base.allocated,
        "inspection_version": base.inspection_version,
        "fetched_at": stamp(base.fetched_at),
        "last_used_at": stamp(base.last_used_at),
        "file_digest": None if base.file_digest is None else digest(base.file_digest),
        "verified_at": None if base.verified_at is None else stamp(base.verified_at),
        "signatures": signatures(base.signatures),
    }


def to_base(row: sqlite3.Row) -> Base:
    """Read a base from its columns."""
    return Base(
        base_id=BaseId(row["base_id"]),
        state=BaseState(row["state"]),
        format=DiskFormat(row["format"]),
        source_format=row["source_format"],
        size=row["size"],
        virtual_size=row["virtual_size"],
        allocated=row["allocated"],
        inspection_version=row["inspection_version"],
        fetched_at=datetime.fromisoformat(row["fetched_at"]),
        last_used_at=datetime.fromisoformat(row["last_used_at"]),
        file_digest=None if row["file_digest"] is None else Digest(*row["file_digest"].split(":")),
        verified_at=(
            None if row["verified_at"] is None else datetime.fromisoformat(row["verified_at"])
        ),
        signatures=_SIGNATURES.validate_json(row["signatures"]),
    )


def to_image(row: sqlite3.Row) -> CachedImage:
    """Read an image from its columns."""
    return CachedImage(
        image=_IMAGE.validate_json(row["description"]),
        base_id=row["base_id"],
        requested_at=datetime.fromisoformat(row["requested_at"]),
        standing=Standing(row["standing"]),
    )


def lease_row(lease: Lease) -> Mapping[str, object]:
    """Give the columns of a lease."""
    return {
        "lease_id": lease.lease_id,
        "base_id": lease.base_id,
        "holder": lease.holder,
        "expires_at": stamp(lease.expires_at),
    }


def to_lease(row: sqlite3.Row) -> Lease:
    """Read a lease from its columns."""
    return Lease(
        lease_id=row["lease_id"],
        base_id=BaseId(row["base_id"]),
        holder=row["holder"],
        expires_at=datetime.fromisoformat(row["expires_at"]),
    )


def disk_row(disk: Disk) -> Mapping[str, object]:
    """Give the columns of a disk."""
    return {
        "instance_id": disk.key.instance_id,
        "name": disk.key.name,
        "spec": None if disk.spec is None else _SPEC.dump_json(disk.spec).decode(),
        "state": disk.state,
        "format": disk.format,
        "mode": disk.mode,
        "virtual_size": disk.virtual_size,
        "image_id": disk.image_id,
        "base_id": disk.base_id,
        "cache": disk.cache,
        "created_at": stamp(disk.created_at),
        "error": disk.error,
    }


@lru_cache(maxsize=1024)
def _spec(text: str) -> DiskSpec:
    """Read what was asked for; nearly always it is the same as for another disk."""
    return _SPEC.validate_json(text)


def _shared(text: str | None) -> str | None:
    """Give the same string for all rows that say the same, so that ten thousand keep it once."""
    return None if text is None else intern(text)


def to_disk(row: sqlite3.Row) -> Disk:
    """Read a disk from its columns."""
    name = DiskName(intern(row["name"]))
    image_id, base_id = _shared(row["image_id"]), _shared(row["base_id"])
    return Disk(
        key=DiskKey(instance_id=InstanceId(row["instance_id"]), name=name),
        spec=None if row["spec"] is None else _spec(row["spec"]),
        state=DiskState(row["state"]),
        format=DiskFormat(row["format"]),
        mode=DiskMode(row["mode"]),
        virtual_size=row["virtual_size"],
        image_id=None if image_id is None else ImageId(image_id),
        base_id=None if base_id is None else BaseId(base_id),
        cache=CacheResult(row["cache"]),
        created_at=datetime.fromisoformat(row["created_at"]),
        error=row["error"],
    )
