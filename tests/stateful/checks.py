"""What holds after every step, whatever it was, as far as it can be looked at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from cacheagent.backends import qcow2
from cacheagent.model import BaseState, DiskFormat, DiskState, Standing
from cacheagent.policy.layout import parse_base_name, parse_template_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheagent.model import Base, BaseId
    from cacheagent.policy.layout import Layout
    from tests.service.rig import Rig
    from tests.stateful.model import Hold, MadeDisk

from collections.abc import Mapping

from cacheagent.policy.eviction import EvictionPolicy
from tests.stateful.images import Image
from tests.stateful.model import Model, Seen

MANIFEST_BYTES = 8192
"""What the manifest of a base takes at most: it is in no reservation."""


async def look(rig: Rig) -> Seen:
    """Ask the agent for all it knows, while nothing goes on."""
    catalog = rig.parts.catalog
    now = rig.parts.now()
    rooms = {rig.parts.room, rig.parts.disk_room}
    return Seen(
        now=now,
        bases={base.base_id: base for base in await catalog.bases()},
        images={cached.image.image_id: cached for cached in await catalog.images()},
        disks={disk.key: disk for disk in await catalog.disks()},
        pins=await catalog.pins(),
        leases={lease.lease_id: lease.base_id for lease in await catalog.leases(now)},
        cache_bytes=await rig.parts.store.cache_bytes(),
        reserved=sum(room.reserved for room in rooms),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Compares what was seen with the model, and with the step before."""

    model: Model
    images: tuple[Image, ...]
    policy: EvictionPolicy
    contents: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.model.layout

    def all(self, seen: Seen) -> None:
        """Check what has to hold at any time at which nothing goes on."""
        self.bases(seen)
        self.disks(seen)
        self.files_of_others()
        self.leftovers(seen)
        self.books(seen)

    # --- bases ---------------------------------------------------------------------------------

    def bases(self, seen: Seen) -> None:
        """Every file in ``bases/`` has a row and the right content, and every row a file."""
        contents = {image.base_id: _digest_of(image.content) for image in self.images}
        there = {name[0]: path for path, name in _bases(self.layout) if name is not None}
        assert set(there) == seen.ready
        states = {base.state for base in seen.bases.values()}
        assert states <= {BaseState.READY, BaseState.QUARANTINED}
        for base_id in seen.ready:
            base = seen.bases[base_id]
            path = self.layout.base(base_id, base.format)
            assert there[base_id] == path
            assert _digest(path) == contents[base_id]
            assert self.layout.manifest(base_id, base.format).is_file()
            assert max(base.last_used_at, base.fetched_at) >= self.model.used.get(
                base_id, base.last_used_at
            )
        for cached in seen.images.values():
            assert cached.base_id is None or cached.base_id in seen.bases

    def kept(self, held: frozenset[Hold], before: Seen, after: Seen) -> None:
        """No base goes that somebody held before the step and holds after it."""
        still = held & self.model.holds(before)
        lost = {
            hold for hold in still if hold[2] not in after.ready and self._holds_on(hold, after)
        }
        assert not lost

    def _holds_on(self, hold: Hold, after: Seen) -> bool:
        """Tell whether a hold that has an end has not come to it."""
        kind, who, _ = hold
        return kind != "lease" or self.model.leases[str(who)][1] > after.now

    def gone(self, before: Seen, after: Seen, *, may_go: frozenset[BaseId]) -> frozenset[BaseId]:
        """Give the bases that went by the rules: none of them younger than ``min_age``."""
        went = before.ready - after.ready - may_go
        for base_id in went:
            assert _age(before.bases[base_id], after) >= self.policy.min_age
        return frozenset(went)

    # --- disks ---------------------------------------------------------------------------------

    def disks(self, seen: Seen) -> None:
        """Every disk that was promised is there, over the right base; there are no others."""
        ready = {key for key, disk in seen.disks.items() if disk.state is DiskState.READY}
        assert set(self.model.disks) <= ready
        assert ready - set(self.model.disks) <= self.model.lost
        assert set(seen.disks) - ready <= self.model.failed
        for key, disk in self.model.disks.items():
            assert seen.disks[key].virtual_size == disk.virtual_size
            self._disk(disk)

    def _disk(self, disk: MadeDisk) -> None:
        if disk.format is DiskFormat.RAW:
            assert disk.path.stat().st_size == disk.virtual_size
            return
        header = qcow2.read_header(disk.path)
        assert header.virtual_size == disk.virtual_size
        if disk.overlay_of is None:
            assert header.backing_file is None
        else:
            base = self.layout.base(disk.overlay_of, DiskFormat.RAW)
            # What somebody else has made may name it in other ways.
            assert header.backing_file == str(base) or disk.spec is None
            assert base.is_file()

    # --- files ---------------------------------------------------------------------------------

    def files_of_others(self) -> None:
        """Look that what somebody else has made is as it was."""
        for path, overlay in self.model.by_hand.items():
            hidden = self.model.unmounted and not path.is_relative_to(self.layout.instances_dir)
            assert hidden or path.stat().st_ino == overlay.inode

    def leftovers(self, seen: Seen) -> None:
        """Nothing is left of what has ended."""
        layout = self.layout
        allowed = {
            path.name
            for image_id in self.model.unfinished
            for path in (layout.part(image_id), layout.part_record(image_id))
        }
        assert _names(layout.ingest) <= allowed
        assert not _names(layout.trash)
        spoiled = set(seen.bases) - seen.ready
        assert {
            name[0] for name in map(parse_base_name, _names(layout.quarantine)) if name
        } <= spoiled
        assert not list(layout.state_dir.rglob("*.making"))
        for name in _names(layout.templates):
            template = parse_template_name(name)
            assert template is not None
            assert template.base_id is None or template.base_id in seen.bases
        known = {disk.path for disk in self.model.disks.values()} | set(self.model.by_hand)
        assert set(layout.instances_dir.glob("*/*")) <= known

    def books(self, seen: Seen) -> None:
        """Nothing is set aside for nobody, and the cache is within its bound."""
        assert seen.reserved == 0
        assert seen.pins == self.model.pins
        assert set(seen.leases) >= set(self.model.leases)
        if self.policy.max_size is not None:
            manifests = MANIFEST_BYTES * len(seen.bases)
            assert seen.cache_bytes <= self.policy.max_size + manifests

    # --- after a pass --------------------------------------------------------------------------

    def bounds(self, seen: Seen, free: int) -> None:
        """Nothing that may go lies there after a pass while a bound is broken."""
        if self.model.in_doubt():
            return
        rest = self.evictable(seen)
        if self.policy.max_size is not None and seen.cache_bytes > self.policy.max_size:
            assert not rest
        if free < self.policy.min_free:
            kept = seen.cache_bytes - min((base.allocated for base in rest), default=0)
            assert not rest or kept < self.policy.min_keep
        inactive = {
            cached.base_id
            for cached in seen.images.values()
            if cached.standing is not Standing.ACTIVE
        } - {
            cached.base_id for cached in seen.images.values() if cached.standing is Standing.ACTIVE
        }
        assert not [base for base in rest if base.base_id in inactive]
        if self.policy.max_idle:
            assert not [base for base in rest if _age(base, seen) >= self.policy.max_idle]

    def evictable(self, seen: Seen) -> list[Base]:
        """Give the bases that nobody holds, and that are old enough."""
        held = {hold[2] for hold in self.model.holds(seen)} | self.model.doubted(seen)
        return [
            base
            for base in map(seen.bases.__getitem__, sorted(seen.ready))
            if base.base_id not in held and _age(base, seen) >= self.policy.min_age
        ]


def _age(base: Base, seen: Seen) -> float:
    used = min(max(base.last_used_at, base.fetched_at), seen.now)
    return (seen.now - used).total_seconds()


def _bases(layout: Layout) -> Iterator[tuple[Path, tuple[BaseId, DiskFormat] | None]]:
    for path in layout.bases.iterdir():
        if path.suffix != ".json":
            yield path, parse_base_name(path.name)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_at(path, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest_at(path: Path, _inode: int, _mtime: int, _ctime: int) -> str:
    """Read a file; what has not changed since is not read again."""
    return _digest_of(path.read_bytes())


@lru_cache(maxsize=4096)
def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
