"""The JSON of the API as types: what is asked for, and what comes back."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

DiskFormat = Literal["qcow2", "raw"]
DiskMode = Literal["overlay", "full"]
FileSystem = Literal["ext4", "xfs", "vfat", "swap"]


class DiskWish(TypedDict, total=False):
    """The disk that is wanted; what is left out, or None, is the daemon's default.

    A disk without ``image_id`` is blank and needs ``size_bytes``; ``filesystem`` and ``label``
    are for it alone.
    """

    image_id: str | None
    size_bytes: int | None
    format: DiskFormat | None
    mode: DiskMode | None
    filesystem: FileSystem | None
    label: str | None


class BaseShape(TypedDict):
    """The base of a disk or of an image."""

    base_id: str
    path: str
    format: str


class BootFileShape(TypedDict):
    """A file for the hypervisor to load, once ``state`` is ``ready``."""

    path: str
    state: Literal["pending", "ready", "failed"]
    size_bytes: int
    image_id: str | None


class BootShape(TypedDict):
    """What a disk made of an AMI is started by."""

    kernel: BootFileShape | None
    ramdisk: BootFileShape | None


class DiskShape(TypedDict):
    """A disk; its file is there to be opened once ``state`` is ``ready``."""

    instance_id: str
    name: str
    state: Literal["pending", "ready", "failed"]
    path: str
    format: str
    mode: str
    virtual_size_bytes: int
    image_id: str | None
    base: BaseShape | None
    boot: BootShape | None
    cache: Literal["hit", "miss", "joined", "blank"]
    created_at: str
    operation: object
    error: str | None


class InstanceShape(TypedDict):
    """An instance with its disks."""

    instance_id: str
    disks: list[DiskShape]


class ProgressShape(TypedDict):
    """How far an image has come."""

    bytes_done: int
    bytes_total: int
    bytes_per_second: int
    eta_seconds: int | None


class UserShape(TypedDict):
    """One reason why a base is in use."""

    kind: str
    instance_id: NotRequired[str]
    name: NotRequired[str]
    path: NotRequired[str]
    detail: NotRequired[str]


class ImageShape(TypedDict):
    """An image that is cached or coming."""

    image_id: str
    name: str
    state: Literal["queued", "downloading", "converting", "ready", "failed", "quarantined"]
    base: BaseShape | None
    size_bytes: int | None
    virtual_size_bytes: int | None
    allocated_bytes: int
    disk_format: str | None
    progress: ProgressShape | None
    pinned: bool
    in_use: bool
    users: list[UserShape]
    fetched_at: str | None
    last_used_at: str | None
    error: str | None


class BoundsShape(TypedDict):
    """The bounds of the cache, and what is measured against them."""

    cache_bytes: int
    max_size_bytes: int | None
    min_keep_bytes: int
    size_bytes: int
    used_bytes: int
    high_watermark_bytes: int
    low_watermark_bytes: int
    free_bytes: int
    min_free_bytes: int
    reserved_bytes: int
    needed_bytes: int


class WhyShape(TypedDict):
    """Why an image stays, or when it goes; ``summary`` says it in sentences."""

    image_id: str
    state: str
    base_id: str | None
    verdict: Literal["goes", "stays"] | None
    reason: str | None
    users: list[UserShape]
    rules: list[str]
    position: int | None
    unused_bases: int | None
    pinned: bool
    allocated_bytes: int
    fetched_at: str | None
    last_used_at: str | None
    free_at: str | None
    idle_at: str | None
    bounds: BoundsShape
    summary: str


class VerificationShape(TypedDict):
    """What came of reading a base again."""

    image_id: str
    base_id: str
    outcome: Literal["verified", "recorded", "damaged"]
    algorithm: str
    expected: str | None
    actual: str | None
    bytes_read: int
    seconds: float
    error: str | None


class EvictedShape(TypedDict):
    """A base that went, or would go."""

    base_id: str
    image_ids: list[str]
    reason: str
    bytes: int
    last_used_at: str


class StayingShape(TypedDict):
    """A base that stays, with everything that keeps it."""

    base_id: str
    image_ids: list[str]
    reason: str | None
    users: list[UserShape]
    rules: list[str]
    position: int | None
    bytes: int
    last_used_at: str
    free_at: str | None
    idle_at: str | None


class SkippedShape(TypedDict):
    """A base that was to go, and turned out to be in use."""

    base_id: str
    image_ids: list[str]
    reason: str
    bytes: int
    users: list[UserShape]


class DroppedShape(TypedDict):
    """A refused image that went from quarantine, or would go."""

    name: str
    image_id: str
    bytes: int


class PrunedShape(TypedDict):
    """What a pass did, or would do in a dry run."""

    dry_run: bool
    needed_bytes: int
    freed_bytes: int
    unmet_bytes: int
    unmet_inodes: int
    dropped: list[DroppedShape]
    evicted: list[EvictedShape]
    stay: list[StayingShape]
    skipped: list[SkippedShape]


class EventShape(TypedDict):
    """Something that happened: ``data`` has ``at``, when it was, and what is known of it."""

    id: str
    event: str
    data: dict[str, Any]


class SpaceShape(TypedDict):
    """The file system of the cache, and the cache's share of it."""

    size_bytes: int
    used_bytes: int
    free_bytes: int
    cache_bytes: int
    max_size_bytes: int | None
    reserved_bytes: int
    high_watermark_bytes: int
    low_watermark_bytes: int
    min_free_bytes: int


class PressureShape(TypedDict):
    """What the last pass of eviction could not do."""

    doubts: list[UserShape]
    unmet_bytes: int


class QuarantinedShape(TypedDict):
    """A refused image: the rule that it broke, what was found, and when."""

    name: str
    image_id: str
    reason: str
    detail: str
    size_bytes: int
    quarantined_at: str


class QuarantineShape(TypedDict):
    """What was refused, and is kept to be looked at; the newest come first."""

    bytes: int
    max_size_bytes: int
    count: int
    files: list[QuarantinedShape]


class LoopShape(TypedDict):
    """A background loop."""

    last_run_at: str | None


class GlanceShape(TypedDict):
    """Whether Glance answered when it was last asked."""

    reachable: bool | None
    checked_at: str | None


class StatusShape(TypedDict):
    """The agent at a glance."""

    version: str
    started_at: str
    uptime_seconds: float
    ready: bool
    stopping: bool
    sandbox: Literal["systemd", "bubblewrap", "rlimits"]
    space: SpaceShape
    eviction: PressureShape
    quarantine: QuarantineShape
    counts: dict[str, int]
    loops: dict[str, LoopShape]
    glance: GlanceShape
