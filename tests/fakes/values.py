"""Values of the model for tests: sound by default, changed where the test cares."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypedDict, Unpack

from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CacheResult,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskName,
    DiskSpec,
    DiskState,
    GlanceImage,
    ImageId,
    InstanceId,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_NAMESPACE = uuid.UUID("8a6f3a1c-2f5d-4d56-9a3a-5d8b1c7e9f00")


def image_id(number: int) -> ImageId:
    """Give the id of the image of this number, always the same."""
    return ImageId(str(uuid.uuid5(_NAMESPACE, f"image {number}")))


def instance_id(number: int) -> InstanceId:
    """Give the id of the instance of this number, always the same."""
    return InstanceId(str(uuid.uuid5(_NAMESPACE, f"instance {number}")))


def base_id(number: int) -> BaseId:
    """Give the id of the base of this number, always the same."""
    return BaseId(f"sha512-{number:0128x}")


def disk_key(instance: int, name: str = "root") -> DiskKey:
    """Give the key of a disk of the instance of this number."""
    return DiskKey(instance_id=instance_id(instance), name=DiskName(name))


def glance_image(number: int) -> GlanceImage:
    """Give a qcow2 image whose content makes the base of the same number."""
    return GlanceImage(
        image_id=image_id(number),
        name=f"image {number}",
        status="active",
        disk_format="qcow2",
        container_format="bare",
        size=1000,
        virtual_size=1 << 30,
        os_hash_algo="sha512",
        os_hash_value=f"{number:0128x}",
        owner="somebody",
    )


class BaseChanges(TypedDict, total=False):
    """What a test may want to differ in a base."""

    state: BaseState
    format: DiskFormat
    allocated: int
    virtual_size: int
    fetched_at: datetime
    last_used_at: datetime


def base(number: int, **changes: Unpack[BaseChanges]) -> Base:
    """Give a READY raw base."""
    sound = Base(
        base_id=base_id(number),
        state=BaseState.READY,
        format=DiskFormat.RAW,
        source_format="qcow2",
        size=1000,
        virtual_size=1 << 30,
        allocated=4096,
        inspection_version=1,
        fetched_at=NOW,
        last_used_at=NOW,
    )
    return replace(sound, **changes)


class DiskChanges(TypedDict, total=False):
    """What a test may want to differ in a disk."""

    spec: DiskSpec | None
    state: DiskState
    format: DiskFormat
    mode: DiskMode
    virtual_size: int
    image_id: ImageId | None
    base_id: BaseId | None
    cache: CacheResult
    error: str | None


def disk(key: DiskKey, base_number: int | None, **changes: Unpack[DiskChanges]) -> Disk:
    """Give a READY overlay of the base of this number; None: a blank disk."""
    image = None if base_number is None else image_id(base_number)
    sound = Disk(
        key=key,
        spec=DiskSpec(image_id=image, size=2 << 30),
        state=DiskState.READY,
        format=DiskFormat.QCOW2,
        mode=DiskMode.OVERLAY,
        virtual_size=2 << 30,
        image_id=image,
        base_id=None if base_number is None else base_id(base_number),
        cache=CacheResult.BLANK if base_number is None else CacheResult.MISS,
        created_at=NOW,
    )
    return replace(sound, **changes)
