"""The JSON of every answer, as models.

The OpenAPI document is generated from these models. An answer has all of its keys at all times,
None where there is nothing to say; only ``User`` leaves out what does not name that kind of user.
Sizes are bytes, times RFC 3339 in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

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
    SandboxKind,
    UserKind,
    VerificationOutcome,
)
from cacheagent.policy.eviction import Reason, Rule

Size = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """What all answers have in common: they are complete, and never changed."""

    model_config = ConfigDict(frozen=True)


class BaseRef(Answer):
    """The base that a disk or an image stands on; ``path`` is the same on every host."""

    base_id: BaseId
    path: str
    format: DiskFormat


class BootFile(Answer):
    """A file for the hypervisor to load; it is there to be opened once ``state`` is ``ready``."""

    path: str
    state: DiskState
    size_bytes: Size
    image_id: ImageId | None


class Boot(Answer):
    """Kernel and ramdisk of an instance, which are disks of these names."""

    kernel: BootFile | None
    ramdisk: BootFile | None


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
    boot: Boot | None = Field(description="what a disk made of an AMI is started by")
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


class Bounds(Answer):
    """The bounds of the cache, and what is measured against them.

    ``cache_bytes`` counts bases and unfinished ingests as they lie there; ``needed_bytes`` is the
    largest shortage now. ``max_size_bytes`` None is no bound.
    """

    cache_bytes: Size
    max_size_bytes: Size | None
    min_keep_bytes: Size
    size_bytes: Size
    used_bytes: Size
    high_watermark_bytes: Size
    low_watermark_bytes: Size
    free_bytes: Size
    min_free_bytes: Size
    reserved_bytes: Size
    needed_bytes: Size


class Why(Answer):
    """Why an image stays, or when it goes; ``summary`` says it in sentences.

    ``verdict`` is None where there is no base to decide on: the image is coming, or failed.
    ``reason`` is why it goes or, where it stays in spite of it, would have to. ``position`` counts
    from 1 in the order in which the ``unused_bases`` go, and is None for one in use.
    """

    image_id: ImageId
    state: ImageState
    base_id: BaseId | None
    verdict: Literal["goes", "stays"] | None
    reason: Reason | None
    users: list[User]
    rules: list[Rule] = Field(description="what keeps a base that nobody uses")
    position: Annotated[int, Field(ge=1)] | None
    unused_bases: Size | None
    pinned: bool
    allocated_bytes: Size
    fetched_at: datetime | None
    last_used_at: datetime | None
    free_at: datetime | None = Field(description="when min_age ends to hold it")
    idle_at: datetime | None = Field(description="when max_idle lets it go if nobody uses it")
    bounds: Bounds
    summary: str


class Verification(Answer):
    """A base that was read again; digests are hex, of the file that lies here.

    ``expected`` is None where none was known, ``actual`` where the file could not be read to its
    end. ``bytes_read`` leaves out what are holes. ``error`` says why a base is damaged.
    """

    image_id: ImageId
    base_id: BaseId
    outcome: VerificationOutcome
    algorithm: str
    expected: str | None
    actual: str | None
    bytes_read: Size
    seconds: float
    error: str | None


class EvictedBase(Answer):
    """A base that went, or would go: ``bytes`` is what its file took."""

    base_id: BaseId
    image_ids: list[ImageId]
    reason: Reason
    bytes: Size
    last_used_at: datetime


class StayingBase(Answer):
    """A base that stays, with everything that keeps it; the keys are those of ``Why``."""

    base_id: BaseId
    image_ids: list[ImageId]
    reason: Reason | None
    users: list[User]
    rules: list[Rule]
    position: Annotated[int, Field(ge=1)] | None
    bytes: Size
    last_used_at: datetime
    free_at: datetime | None
    idle_at: datetime | None


class SkippedBase(Answer):
    """A base that was to go, and whose users were found in the last look before it went."""

    base_id: BaseId
    image_ids: list[ImageId]
    reason: Reason
    bytes: Size
    users: list[User]


class DroppedFile(Answer):
    """A refused image that went from quarantine, or would go, before any base."""

    name: str
    image_id: ImageId
    bytes: Size


class Pruned(Answer):
    """What a pass did, or would do in a dry run.

    ``dropped`` went from quarantine, or would go, and then ``evicted``, in order. ``needed_bytes``
    is the largest shortage; ``freed_bytes`` are measured, in a dry run planned; ``unmet_bytes``
    and ``unmet_inodes`` are short still.
    """

    dry_run: bool
    needed_bytes: Size
    freed_bytes: Size
    unmet_bytes: Size
    unmet_inodes: Size
    dropped: list[DroppedFile]
    evicted: list[EvictedBase]
    stay: list[StayingBase]
    skipped: list[SkippedBase]


class Space(Answer):
    """The file system of the cache, and the cache's share of it.

    ``used_bytes`` counts everything on the file system, ``cache_bytes`` bases, unfinished ingests
    and quarantine as they lie there; ``max_size_bytes`` is None without a bound;
    ``reserved_bytes`` are promised to downloads that are under way.
    """

    size_bytes: Size
    used_bytes: Size
    free_bytes: Size
    cache_bytes: Size
    max_size_bytes: Size | None
    reserved_bytes: Size
    high_watermark_bytes: Size
    low_watermark_bytes: Size
    min_free_bytes: Size


class Pressure(Answer):
    """What the last pass of eviction could not do: ``doubts`` keep all bases.

    ``unmet_bytes`` are those that the bounds ask for and that could not be freed.
    """

    doubts: list[User]
    unmet_bytes: Size


class QuarantinedFile(Answer):
    """A refused image: ``reason`` is the rule that it broke, ``detail`` what was found.

    ``size_bytes`` is what it takes on the file system.
    """

    name: str
    image_id: ImageId
    reason: str
    detail: str
    size_bytes: Size
    quarantined_at: datetime


class Quarantine(Answer):
    """What was refused, and is kept to be looked at; ``bytes`` counts damaged bases as well.

    ``count`` are all refused images, ``files`` the newest of them.
    """

    bytes: Size
    max_size_bytes: Size
    count: Size
    files: list[QuarantinedFile]


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
    sandbox: SandboxKind
    space: Space
    eviction: Pressure
    quarantine: Quarantine
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
