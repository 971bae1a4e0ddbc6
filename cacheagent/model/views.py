"""Who uses a base, and what the API shows: values put together from several rooms."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cacheagent.model.ids import BaseId, ImageId
from cacheagent.model.values import (
    Base,
    Disk,
    DiskKey,
    DiskMode,
    GlanceImage,
    ImageState,
    Progress,
)


class UserKind(enum.StrEnum):
    """Who can hold a base.

    ``OVERLAY`` is a file that names it, ``QEMU`` a lock on it, ``GUEST`` a QEMU that names it over
    QMP, ``LINK`` a second hard link to its file, ``DOUBT`` what keeps anybody from being sure.
    """

    DISK = "disk"
    LEASE = "lease"
    PIN = "pin"
    WAITER = "waiter"
    OVERLAY = "overlay"
    QEMU = "qemu"
    GUEST = "guest"
    LINK = "link"
    DOUBT = "doubt"


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

    def unnamed(self) -> User:
        """Give only what kind of user it is: which one is no business of a tenant."""
        return User(kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceUsage:
    """A file system, in bytes: its size, and what an ordinary user may still write.

    ``inodes`` and ``inodes_available`` are the same in files; 0 of 0 where there is no limit.
    """

    total: int
    available: int
    inodes: int = 0
    inodes_available: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """A disk with what only the layout knows: its path, and its base with its path.

    ``boot`` are kernel and ramdisk of its instance, for a disk that may need them.
    """

    disk: Disk
    path: Path
    base: Base | None
    base_path: Path | None
    boot: tuple[DiskView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """An image as an operator sees it: its state, its base, its users, and how far it has come.

    ``progress`` is there while an ingest runs, ``error`` (a problem's detail) after one failed, or
    where the base is refused. ``withheld`` says why nobody gets the base before it is proved anew.
    """

    image: GlanceImage
    state: ImageState
    base: Base | None
    base_path: Path | None
    progress: Progress | None
    pinned: bool
    users: tuple[User, ...]
    error: str | None
    withheld: str | None = None


class VerificationOutcome(enum.StrEnum):
    """What came of reading a base again.

    ``RECORDED``: it was converted, and no digest of the file was known; now there is one.
    ``DAMAGED``: it is not what it was, and was taken out of use.
    """

    VERIFIED = "verified"
    RECORDED = "recorded"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A base that was read again: the digest of its file, and what it should be.

    ``expected`` is None where none was known, ``actual`` where the file could not be read to its
    end; ``error`` says why a base is damaged. ``bytes_read`` leaves out what are holes.
    """

    base_id: BaseId
    algorithm: str
    expected: str | None
    actual: str | None
    outcome: VerificationOutcome
    bytes_read: int
    seconds: float
    error: str | None = None


class SandboxKind(enum.StrEnum):
    """What qemu-img and the tools for file systems are shut in by; the safest comes first.

    ``SYSTEMD`` is bubblewrap in a unit of its own, ``RLIMITS`` no more than limits of resources.
    """

    SYSTEMD = "systemd"
    BUBBLEWRAP = "bubblewrap"
    RLIMITS = "rlimits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the catalog holds, counted.

    ``in_use`` are bases that a disk, a pin or a lease holds; ``oldest_unused`` is the last use of
    the one unused longest, None where all are in use. ``allocated``, ``virtual`` and ``apparent``
    are the bytes that all bases take, that their disks have, and that their files are long.
    ``ready_disks`` leaves out those that are being made, or failed.
    """

    bases: int
    quarantined: int
    in_use: int
    pinned: int
    leases: int
    disks: int
    instances: int
    ready_disks: Mapping[DiskMode, int]
    allocated: int
    virtual: int
    apparent: int
    oldest_unused: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedFile:
    """A refused image in quarantine: the rule that it broke, in a word and in words, and when."""

    name: str
    image_id: ImageId
    reason: str
    detail: str
    allocated: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineView:
    """What lies in quarantine: bytes with those of damaged bases, and the bound that they have.

    ``count`` are all refused images, ``files`` the newest of them that may be shown.
    """

    allocated: int
    max_size: int
    count: int
    files: tuple[QuarantinedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """The agent at a glance. ``loops`` maps a loop's name to the time of its last run.

    ``cache_bytes`` are those of bases, unfinished ingests and quarantine, as measured. ``doubts``
    keep all bases from eviction; ``unmet_bytes`` are what the bounds ask for and the last pass
    could not free.
    """

    version: str
    started_at: datetime
    uptime_seconds: float
    ready: bool
    stopping: bool
    sandbox: SandboxKind
    space: SpaceUsage
    cache_bytes: int
    reserved: int
    high_watermark_bytes: int
    low_watermark_bytes: int
    min_free: int
    max_size: int | None
    doubts: tuple[User, ...]
    unmet_bytes: int
    quarantine: QuarantineView
    counts: Mapping[str, int]
    loops: Mapping[str, datetime | None]
    glance_reachable: bool | None
    glance_checked_at: datetime | None
