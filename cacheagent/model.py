"""The values that the rooms hand to one another: frozen, without behaviour that does I/O.

Sizes are bytes, times are aware datetimes in UTC. Parsers of identifiers raise ``ValueError``
with a sentence for whoever sent them.
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, NewType

ImageId = NewType("ImageId", str)
InstanceId = NewType("InstanceId", str)
DiskName = NewType("DiskName", str)
BaseId = NewType("BaseId", str)

DISK_NAME_PATTERN = r"[a-z][a-z0-9_-]{0,31}"
UUID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Algorithms that may name a base, with the length of their digest in hex digits."""


def _parse_uuid(text: str) -> str:
    if not re.fullmatch(UUID_PATTERN, text):
        raise ValueError("is not a UUID in its canonical form (lower case, with hyphens)")
    return str(uuid.UUID(text))


def parse_image_id(text: str) -> ImageId:
    """Take ``text`` as the id of an image; ``ValueError`` unless it is a canonical UUID."""
    return ImageId(_parse_uuid(text))


def parse_instance_id(text: str) -> InstanceId:
    """Take ``text`` as the id of an instance; ``ValueError`` unless it is a canonical UUID."""
    return InstanceId(_parse_uuid(text))


def parse_disk_name(text: str) -> DiskName:
    """Take ``text`` as the name of a disk; ``ValueError`` unless it fits the closed pattern."""
    if not re.fullmatch(DISK_NAME_PATTERN, text):
        raise ValueError(f"does not match {DISK_NAME_PATTERN}")
    return DiskName(text)


class DiskFormat(enum.StrEnum):
    """Formats of the files that cacheagent makes: bases and disks."""

    RAW = "raw"
    QCOW2 = "qcow2"


class DiskMode(enum.StrEnum):
    """How a disk relates to its base: backed by it, or an independent copy."""

    OVERLAY = "overlay"
    FULL = "full"


class FileSystem(enum.StrEnum):
    """File systems that a blank disk can be made with."""

    EXT4 = "ext4"
    XFS = "xfs"
    VFAT = "vfat"
    SWAP = "swap"


LABEL_PATTERNS: Final[Mapping[FileSystem, str]] = {
    FileSystem.EXT4: r"[A-Za-z0-9][A-Za-z0-9_.-]{0,15}",
    FileSystem.XFS: r"[A-Za-z0-9][A-Za-z0-9_.-]{0,11}",
    FileSystem.VFAT: r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}",
    FileSystem.SWAP: r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}",
}
"""The labels of each file system: mke2fs(8), mkfs.xfs(8), mkfs.fat(8), mkswap(8).

They go onto command lines: no blank, no control character, no hyphen in front. The lengths are
those of the fields on disk; of swap's 16 bytes the last stays a NUL, and FAT forbids the dot.
"""


def check_label(filesystem: FileSystem, label: str) -> None:
    """Raise ``ValueError`` unless the file system can bear the label."""
    pattern = LABEL_PATTERNS[filesystem]
    if not re.fullmatch(pattern, label):
        raise ValueError(f"has to match {pattern} for {filesystem}")


class BaseState(enum.StrEnum):
    """Where the base of an image stands.

    ``INGESTING`` is the state of an image that names no base yet: the digest that will name it
    is known only at the end. The others are states of a base.
    """

    INGESTING = "ingesting"
    READY = "ready"
    EVICTING = "evicting"
    QUARANTINED = "quarantined"


class IngestPhase(enum.StrEnum):
    """What an ingest is doing now."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"


class ImageState(enum.StrEnum):
    """Where an image stands, as the API tells it."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    READY = "ready"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class DiskState(enum.StrEnum):
    """Whether a disk can be used."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class CacheResult(enum.StrEnum):
    """What a request found: the base, nothing, somebody else's download, or no need of one."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"
    BLANK = "blank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf a request runs: the tenant's Keystone token, if any, and the request's id."""

    token: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest: the name of its algorithm as hashlib knows it, and lower-case hex digits."""

    algorithm: str
    hex: str

    @property
    def base_id(self) -> BaseId:
        """The content address that this digest gives."""
        return BaseId(f"{self.algorithm}-{self.hex}")


def parse_base_id(text: str) -> Digest:
    """Take ``<algorithm>-<hex>`` apart; ``ValueError`` unless algorithm and length are known."""
    algorithm, _, digits = text.partition("-")
    length = DIGEST_LENGTHS.get(algorithm)
    if length is None or not re.fullmatch(f"[0-9a-f]{{{length}}}", digits):
        raise ValueError(f"{text!r} is not <algorithm>-<hex digest>")
    return Digest(algorithm, digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlanceImage:
    """An image as Glance describes it, with Glance's names.

    ``size`` and ``virtual_size`` may be unknown, and so may the digest (``os_hash_value``) and
    the MD5 ``checksum``. ``min_disk`` is GiB, as in Glance.
    """

    image_id: ImageId
    name: str
    status: str
    disk_format: str | None
    container_format: str | None
    size: int | None
    virtual_size: int | None = None
    min_disk: int = 0
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    checksum: str | None = None
    visibility: str = "private"
    owner: str | None = None

    @property
    def min_disk_bytes(self) -> int:
        """The smallest disk that the image's owner allows, in bytes."""
        return self.min_disk << 30

    @property
    def digest(self) -> Digest | None:
        """The strong digest that Glance holds, if it holds one that we can name a base by."""
        if self.os_hash_algo not in DIGEST_LENGTHS or not self.os_hash_value:
            return None
        return Digest(self.os_hash_algo, self.os_hash_value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base image: a read-only local file that disks are backed by.

    ``source_format`` is what the image was found to be when it came (``raw``, ``qcow2``,
    ``vmdk`` …), ``size`` its length as downloaded; ``format`` and ``virtual_size`` are those of
    the file that lies here now, ``allocated`` the bytes that it takes on the file system.
    """

    base_id: BaseId
    state: BaseState
    format: DiskFormat
    source_format: str
    size: int
    virtual_size: int
    allocated: int
    inspection_version: int
    fetched_at: datetime
    last_used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """What the catalog knows of an image: Glance's description, and the base it stands for.

    ``base_id`` is None while the first ingest has not ended: that is the intent to download.
    """

    image: GlanceImage
    base_id: BaseId | None
    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """What a scheduler asks for; two requests with equal specifications mean the same disk.

    ``size`` None stands for the virtual size of the image.
    """

    image_id: ImageId | None
    size: int | None
    format: DiskFormat = DiskFormat.QCOW2
    mode: DiskMode = DiskMode.OVERLAY
    filesystem: FileSystem | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskKey:
    """The name of a disk among all disks: whose, and which."""

    instance_id: InstanceId
    name: DiskName


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A named disk of an instance.

    ``spec`` is what was asked for, None for a disk that was found and not made by request;
    ``virtual_size`` is 0 until it is known.
    """

    key: DiskKey
    spec: DiskSpec | None
    state: DiskState
    format: DiskFormat
    mode: DiskMode
    virtual_size: int
    image_id: ImageId | None
    base_id: BaseId | None
    cache: CacheResult
    created_at: datetime
    error: str | None = None

    @property
    def needs_base(self) -> bool:
        """Whether the base has to stay: for an overlay, or while the disk is being made."""
        if self.base_id is None or self.state is DiskState.FAILED:
            return False
        return self.mode is DiskMode.OVERLAY or self.state is DiskState.PENDING


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is: bytes done and in all, and the rate of late in bytes per second."""

    phase: IngestPhase
    bytes_done: int
    bytes_total: int
    bytes_per_second: float


class UserKind(enum.StrEnum):
    """Who can hold a base."""

    DISK = "disk"
    LEASE = "lease"
    PIN = "pin"
    WAITER = "waiter"
    OVERLAY = "overlay"
    QEMU = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One reason why a base is in use; ``path`` and ``detail`` where there is no disk of ours."""

    kind: UserKind
    key: DiskKey | None = None
    path: Path | None = None
    detail: str | None = None

    def facts(self) -> dict[str, str]:
        """Give what is known of it, by the names that the API uses."""
        found = {"kind": self.kind.value}
        if self.key is not None:
            found |= {"instance_id": self.key.instance_id, "name": self.key.name}
        if self.path is not None:
            found["path"] = str(self.path)
        if self.detail is not None:
            found["detail"] = self.detail
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceUsage:
    """A file system, in bytes: its size, and what an ordinary user may still write."""

    total: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """A disk with what only the layout knows: its path, and its base with its path."""

    disk: Disk
    path: Path
    base: Base | None
    base_path: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """An image as an operator sees it: its state, its base, its users, and how far it has come.

    ``progress`` is there while an ingest runs, ``error`` (a problem's detail) after one failed.
    """

    image: GlanceImage
    state: ImageState
    base: Base | None
    base_path: Path | None
    progress: Progress | None
    pinned: bool
    users: tuple[User, ...]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """The agent at a glance. ``loops`` maps a loop's name to the time of its last run."""

    version: str
    started_at: datetime
    uptime_seconds: float
    ready: bool
    stopping: bool
    space: SpaceUsage
    cache_allocated: int
    reserved: int
    high_watermark_bytes: int
    low_watermark_bytes: int
    min_free: int
    counts: Mapping[str, int]
    loops: Mapping[str, datetime | None]
    glance_reachable: bool | None
    glance_checked_at: datetime | None
