"""Images, bases and disks as the catalog knows them. Sizes are bytes, times aware and in UTC."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cacheagent.model.ids import DIGEST_LENGTHS, BaseId, Digest, DiskName, ImageId, InstanceId

if TYPE_CHECKING:
    from collections.abc import Mapping


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSignature:
    """A signature over the data of an image, as Glance's properties ``img_signature…`` tell it.

    ``value`` is base64. ``certificate`` names the certificate whose key signed, as a key manager
    does: a UUID. In an image nothing of it is checked yet. In a base it holds, and
    ``vouched_by`` is the fingerprint of what the operator trusted when it was checked.
    """

    value: str
    hash_method: str
    key_type: str
    certificate: str
    vouched_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlanceImage:
    """An image as Glance describes it, with Glance's names.

    ``size`` and ``virtual_size`` may be unknown, and so may the digest (``os_hash_value``) and
    the MD5 ``checksum``. ``min_disk`` is GiB, as in Glance. ``kernel_id`` and ``ramdisk_id`` are
    those of an ``ami``.
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
    signature: ImageSignature | None = None
    kernel_id: ImageId | None = None
    ramdisk_id: ImageId | None = None

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
    ``file_digest`` is that of this file, which a conversion makes another one than that of the
    image; it is None until the file was read for it. ``verified_at`` is when it was last read
    and found to be as it came.

    What was proved of its content: the rules of ``inspection_version`` let it in, and the
    ``signatures`` hold for it.
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
    file_digest: Digest | None = None
    verified_at: datetime | None = None
    signatures: tuple[ImageSignature, ...] = ()


class Standing(enum.StrEnum):
    """What Glance said of an image when it was last asked.

    ``GONE``: it does not know the image any more. ``CHANGED``: the id stands for other content
    now, as it may after a purge (OSSN-0075).
    """

    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    GONE = "gone"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """What the catalog knows of an image: Glance's description, and the base it stands for.

    ``base_id`` is None while the first ingest has not ended: that is the intent to download.
    An image whose ``standing`` is not ACTIVE is handed to nobody before Glance was asked again.
    """

    image: GlanceImage
    base_id: BaseId | None
    requested_at: datetime
    standing: Standing = Standing.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A hold on a base by somebody who works with it: ``holder`` says who, in words.

    It counts until ``expires_at``, so that one that is forgotten keeps nothing for ever.
    """

    lease_id: str
    base_id: BaseId
    holder: str
    expires_at: datetime


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
