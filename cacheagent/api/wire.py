"""The JSON of every answer, as models.

The OpenAPI document is generated from these models. An answer has all of its keys at all times,
None where there is nothing to say; only ``User`` leaves out what does not name that kind of user.
Sizes are bytes, times RFC 3339 in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cacheagent.model import (
    BaseId,
    CacheResult,
    DiskFormat,
    DiskMode,
    DiskName,
    DiskState,
    ImageId,
    ImageState,
    InstanceId,
    UserKind,
)

Size = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """What all answers have in common: they are complete, and never changed."""

    model_config = ConfigDict(frozen=True)


class BaseRef(Answer):
    """The base that a disk or an image stands on; ``path`` is the same on every host."""

    base_id: BaseId
    path: str
    format: DiskFormat


class Disk(Answer):
    """A named disk of an instance; ``path`` is there to be opened once ``state`` is ``ready``."""

    instance_id: InstanceId
    name: DiskName
    state: DiskState
    path: str
    format: DiskFormat
    mode: DiskMode
    virtual_size_bytes: Size
    image_id: ImageId | None
    base: BaseRef | None
    cache: CacheResult
    created_at: datetime
    operation: None = Field(description="reserved for what is being done to the disk")
    error: str | None


class Instance(Answer):
    """An instance with its disks."""

    instance_id: InstanceId
    disks: list[Disk]


class Instances(Answer):
    """Every instance that has a disk here."""

    instances: list[Instance]


class Progress(Answer):
    """How far an image has come; ``eta_seconds`` is None while nothing can be said."""

    bytes_done: Size
    bytes_total: Size
    bytes_per_second: Size
    eta_seconds: Annotated[int, Field(ge=0)] | None


class User(Answer):
    """One reason why a base is in use; which of the other keys are there depends on ``kind``."""

    kind: UserKind
    instance_id: InstanceId | None = None
    name: DiskName | None = None
    path: str | None = None
    detail: str | None = None


class Image(Answer):
    """An image that is cached or coming; sizes are None where nobody knows them yet.

    ``size_bytes`` is the length of the download, ``allocated_bytes`` what the base takes on the
    file system.
    """

    image_id: ImageId
    name: str
    state: ImageState
    base: BaseRef | None
    size_bytes: Size | None
    virtual_size_bytes: Size | None
    allocated_bytes: Size
    disk_format: str | None
    progress: Progress | None
    pinned: bool
    in_use: bool
    users: list[User]
    fetched_at: datetime | None
    last_used_at: datetime | None
    error: str | None


class Images(Answer):
    """Every image that is cached or coming."""

    images: list[Image]


class Space(Answer):
    """The file system of the cache, and the cache's share of it.

    ``used_bytes`` counts everything on the file system, ``cache_bytes`` the bases alone;
    ``reserved_bytes`` are promised to downloads that are under way.
    """

    size_bytes: Size
    used_bytes: Size
    free_bytes: Size
    cache_bytes: Size
    reserved_bytes: Size
    high_watermark_bytes: Size
    low_watermark_bytes: Size
    min_free_bytes: Size


class Loop(Answer):
    """A background loop; ``last_run_at`` is None until its first run has ended."""

    last_run_at: datetime | None


class Glance(Answer):
    """Whether Glance answered when it was last asked; None while it was not asked."""

    reachable: bool | None
    checked_at: datetime | None


class Status(Answer):
    """The agent at a glance."""

    version: str
    started_at: datetime
    uptime_seconds: float
    ready: bool
    stopping: bool
    space: Space
    counts: dict[str, int]
    loops: dict[str, Loop]
    glance: Glance


class Health(Answer):
    """The daemon's loop turns."""

    alive: bool


class Readiness(Answer):
    """Whether the daemon can serve requests."""

    ready: bool
    stopping: bool
