"""What should be there: what was asked for, promised, made by hand, and held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CachedImage,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskSpec,
    DiskState,
    ImageId,
    Standing,
)
from cacheagent.policy.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator


Hold = tuple[str, object, str]
"""Who holds a base: what kind of user, which, and the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the agent and its folders showed after a step."""

    now: datetime
    bases: Mapping[BaseId, Base]
    images: Mapping[ImageId, CachedImage]
    disks: Mapping[DiskKey, Disk]
    pins: frozenset[ImageId]
    leases: Mapping[str, BaseId]
    cache_bytes: int
    reserved: int

    @property
    def ready(self) -> frozenset[BaseId]:
        """The bases that can be used."""
        return frozenset(
            base_id for base_id, base in self.bases.items() if base.state is BaseState.READY
        )

    def hits(self, image_id: ImageId) -> bool:
        """Tell whether a request for the image needs nothing from Glance."""
        cached = self.images.get(image_id)
        return (
            cached is not None
            and cached.standing is Standing.ACTIVE
            and cached.base_id is not None
            and cached.base_id in self.ready
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeDisk:
    """A disk that the agent said is there; ``spec`` is None for one that it found."""

    path: Path
    spec: DiskSpec | None
    format: DiskFormat
    virtual_size: int
    overlay_of: BaseId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """An overlay that somebody else made: of a base, maybe over another file, told by its inode."""

    base_id: BaseId
    inode: int
    over: tuple[Path, int] | None = None


@dataclass(slots=True, kw_only=True)
class Model:
    """All that the agent has to keep.

    ``lost`` are disks whose file somebody removed: the agent may know that or not. ``failed`` may
    have a row that says why. ``used`` is when each base was used last, as far as the agent must
    know of it. While the folder of guests is ``unmounted``, nobody sees what lies there.
    """

    layout: Layout
    disks: dict[DiskKey, MadeDisk] = field(default_factory=dict)
    lost: set[DiskKey] = field(default_factory=set)
    failed: set[DiskKey] = field(default_factory=set)
    by_hand: dict[Path, ByHand] = field(default_factory=dict)
    pins: set[ImageId] = field(default_factory=set)
    leases: dict[str, tuple[BaseId, datetime]] = field(default_factory=dict)
    used: dict[BaseId, datetime] = field(default_factory=dict)
    unfinished: set[ImageId] = field(default_factory=set)
    unmounted: bool = False

    def holds(self, seen: Seen) -> frozenset[Hold]:
        """Give who holds which base that was seen."""
        return frozenset(hold for hold in self._holds(seen) if hold[2] in seen.ready)

    def _holds(self, seen: Seen) -> Iterator[Hold]:
        for key, disk in self.disks.items():
            if disk.overlay_of is not None:
                yield "disk", key, disk.overlay_of
        for path, overlay in self.by_hand.items():
            if self.leads_on(path):
                yield "overlay", path, overlay.base_id
        for image_id in self.pins:
            cached = seen.images.get(image_id)
            if cached is not None and cached.base_id is not None:
                yield "pin", image_id, cached.base_id
        for lease_id, (base_id, expires_at) in self.leases.items():
            if expires_at > seen.now:
                yield "lease", lease_id, base_id

    def doubted(self, seen: Seen) -> frozenset[str]:
        """Give the bases that rows hold though nobody stands behind them any more.

        Those are rows of lost disks, and of leases that live again since the clock was set back.
        """
        rows = (disk for key, disk in seen.disks.items() if key not in self.disks)
        lost = {disk.base_id for disk in rows if disk.base_id is not None}
        return frozenset(lost.union(seen.leases.values()))

    def leads_on(self, path: Path) -> bool:
        """Tell whether a file between an overlay made by hand and its base has not gone."""
        over = self.by_hand[path].over
        if over is None:
            return True
        middle, inode = over
        if middle in self.by_hand:
            return self.by_hand[middle].inode == inode and self.leads_on(middle)
        return middle in self.paths() and middle.stat().st_ino == inode

    def paths(self) -> frozenset[Path]:
        """Give the files of the disks."""
        return frozenset(disk.path for disk in self.disks.values())

    def in_doubt(self) -> bool:
        """Tell whether there may be overlays of any base that nobody can see."""
        return self.unmounted or not all(self.leads_on(path) for path in self.by_hand)

    # --- what happens --------------------------------------------------------------------------

    def made(self, key: DiskKey, spec: DiskSpec, disk: Disk, now: datetime) -> None:
        """Note a disk that the agent said it has made."""
        overlay = disk.mode is DiskMode.OVERLAY and disk.base_id is not None
        self._has(key, disk, spec, disk.base_id if overlay else None)
        if disk.base_id is not None:
            self.use(disk.base_id, now)

    def found(self, disk: Disk) -> None:
        """Note a disk that the agent has found at a start."""
        self._has(disk.key, disk, None, disk.base_id if disk.needs_base else None)

    def _has(
        self, key: DiskKey, disk: Disk, spec: DiskSpec | None, overlay_of: BaseId | None
    ) -> None:
        self.lost.discard(key)
        self.failed.discard(key)
        path = self.layout.disk(key, disk.format)
        self.by_hand.pop(path, None)
        self.disks[key] = MadeDisk(
            path=path,
            spec=spec,
            format=disk.format,
            virtual_size=disk.virtual_size,
            overlay_of=overlay_of,
        )

    def forget_disk(self, key: DiskKey, now: datetime | None) -> None:
        """Note that a disk is to go; with ``now`` the agent knows when its base was free of it."""
        disk = self.disks.pop(key, None)
        self.lost.discard(key)
        self.failed.discard(key)
        if now is not None and disk is not None and disk.overlay_of is not None:
            self.use(disk.overlay_of, now)

    def use(self, base_id: BaseId, now: datetime) -> None:
        """Note that the agent knows a base to be in use now."""
        self.used[base_id] = max(now, self.used.get(base_id, now))

    def expire(self, now: datetime) -> None:
        """Forget the leases that have expired: nobody counts on them, whatever the clock does."""
        self.leases = {key: lease for key, lease in self.leases.items() if lease[1] > now}

    def set_back(self, now: datetime) -> None:
        """Note that the clock was set back: what was to come may count as now."""
        self.used = {base_id: min(when, now) for base_id, when in self.used.items()}

    def missed(self, seen: Seen) -> None:
        """Take over which disks are still in the catalog, though their files have gone."""
        for key, disk in seen.disks.items():
            there = self.layout.disk(key, disk.format).exists()
            if disk.state is DiskState.READY and key not in self.disks and not there:
                self.lost.add(key)

    def restarted(self, seen: Seen) -> None:
        """Take over what a start may change: leases go, overlays become disks, doubts end."""
        self.leases = {key: lease for key, lease in self.leases.items() if key in seen.leases}
        self.unfinished = {
            image_id for image_id, cached in seen.images.items() if cached.base_id is None
        }
        for key, disk in seen.disks.items():
            if disk.state is DiskState.FAILED:
                self.failed.add(key)
            elif key not in self.disks and self.layout.disk(key, disk.format) in self.by_hand:
                self.found(disk)
