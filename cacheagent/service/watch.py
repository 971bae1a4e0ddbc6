"""What events of files mean: a disk was taken away, a base is no longer what it was.

An event only says where to look. What counts is what catalog and files say then, so that our own
deeds, which cause events as well, come to nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.inotify import FileEventKind
from cacheagent.model import Base, BaseState, DiskKey, DiskState
from cacheagent.policy.layout import (
    parse_base_name,
    parse_disk_file_name,
    parse_instance_name,
    parse_unfinished_name,
)
from cacheagent.policy.verification import expected_digest, has_right_length

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.inotify import FileEvent, Watcher
    from cacheagent.model import BaseId, Disk
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts
    from cacheagent.service.watched import Watched

DELETION = "deletion"
"""The trigger of a pass of the pruner that follows a file that has gone."""

_CAME = {FileEventKind.CREATED, FileEventKind.MOVED_IN}
_WENT = {FileEventKind.DELETED, FileEventKind.MOVED_OUT}
_WRITTEN = {FileEventKind.WRITTEN, FileEventKind.MODIFIED}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What may have to follow: a full pass soon, of the reconciler or, for a reason, the pruner.

    ``lost`` looks after a READY base whose file is missing or has another length, ``verify`` after
    one that somebody wrote to, and ``damaged`` after one of which then nothing can be proved.
    """

    reconcile: Callable[[], None]
    prune: Callable[[str], None]
    lost: Callable[[Base], Awaitable[object]]
    verify: Callable[[Base], Awaitable[object]]
    damaged: Callable[[Base, str], Awaitable[object]]


class Watch:
    """Finds out what events mean, and has done what follows from it."""

    def __init__(self, parts: Parts, *, creation: Creation, watched: Watched, hooks: Hooks) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._layout = parts.store.layout
        self._background = parts.background
        self._overflows = parts.metrics.inotify_overflows_total
        self._creation = creation
        self._watched = watched
        self._hooks = hooks
        self._pending: set[DiskKey] = set()
        # What happened to a base while it was looked after: it is looked at again.
        self._mending: dict[BaseId, FileEventKind | None] = {}

    async def begin(self, watcher: Watcher) -> None:
        """Watch all folders, then look at everything once: for what went before they were."""
        await self._watched.begin(watcher)
        await self._look_at_disks()
        await self._look_at_bases()

    async def changed(self) -> bool:
        """Tell whether a folder is another one by now: mounted, unmounted, made anew, gone."""
        return await self._watched.changed()

    async def take(self, watcher: Watcher, event: FileEvent) -> bool:
        """Do what an event asks for; False where all watches have to be made anew."""
        kind, path = event.kind, event.path
        if path is None:
            self._overflows.inc()
            _log.warning("events of files were lost; everything is looked at again")
            return self.doubt()
        gone = kind in {*_WENT, FileEventKind.FOLDER_GONE} and self._watched.is_root(path)
        if gone or kind is FileEventKind.UNMOUNTED:
            _log.error("a watched folder has gone", path=str(path), how=kind.name.lower())
            return self.doubt()
        if path.parent == self._layout.bases:
            await self._base(kind, path)
        elif not event.is_folder:
            await self._file(kind, path)
        elif kind in _CAME:
            await self._folder_came(watcher, path)
        elif kind in _WENT:
            # That of the folder itself says nothing that is not said by the one above it.
            await self._folder_went(watcher, kind, path)
        return True

    def doubt(self) -> bool:
        """Have everything compared, since nobody knows what happened; gives False."""
        self._hooks.reconcile()
        self._hooks.prune(DELETION)
        return False

    # --- disks, and overlays of others -------------------------------------------------------

    async def _folder_came(self, watcher: Watcher, path: Path) -> None:
        """Watch a new folder; what came into it before the watch stood is taken like events."""
        files = await self._watched.cover(watcher, path)
        lying = {key: file for file in files if (key := self._disk_key(file)) is not None}
        known = {disk.key: disk for disk in await self._disks_in(path)}
        for key, file in lying.items():
            await self._found(known.get(key), file)
        for disk in known.values():
            # One that lay there is watched by now.
            if disk.state is not DiskState.READY or disk.key not in lying:
                await self._disk_went(disk, seen=False)

    async def _folder_went(self, watcher: Watcher, kind: FileEventKind, path: Path) -> None:
        moved = kind is FileEventKind.MOVED_OUT
        await self._watched.uncover(watcher, path, below=moved)
        for disk in await self._disks_in(path):
            await self._disk_went(disk, seen=True)
        if moved:
            # Nobody tells what went with it; a folder that is deleted was emptied before.
            self._hooks.prune(DELETION)

    async def _disks_in(self, path: Path) -> list[Disk]:
        """Give the disks that the catalog knows in a folder; none where it is no instance's."""
        instance_id = parse_instance_name(path.name)
        if instance_id is None or path.parent != self._layout.instances_dir:
            return []
        return await self._catalog.disks_of_instance(instance_id)

    async def _file(self, kind: FileEventKind, path: Path) -> None:
        key = self._disk_key(path)
        if kind in _WENT:
            if key is not None:
                await self._disk_went(await self._catalog.disk(key), seen=True)
            elif not self._is_unfinished(path):
                self._hooks.prune(DELETION)
        elif key is not None and kind is not FileEventKind.CREATED:
            await self._found(await self._catalog.disk(key), path)

    async def _found(self, disk: Disk | None, path: Path) -> None:
        """Have a disk compared that nobody knows."""
        if disk is None and await self._store.exists(path):
            self._hooks.reconcile()

    async def _disk_went(self, disk: Disk | None, *, seen: bool) -> None:
        """Drop a disk that has really gone."""
        if disk is None or disk.state is DiskState.FAILED:
            return
        if disk.state is DiskState.READY:
            await self._notice(disk.key, seen=seen)
        elif disk.key not in self._pending:
            # It may have gone in the moment in which it was made, and that may take a while.
            self._pending.add(disk.key)
            self._background.start(self._when_made(disk.key, seen=seen), "a look at a disk")

    async def _when_made(self, key: DiskKey, *, seen: bool) -> None:
        try:
            await self._notice(key, seen=seen)
        finally:
            self._pending.discard(key)

    async def _notice(self, key: DiskKey, *, seen: bool) -> None:
        if await self._creation.notice(key, seen=seen):
            self._hooks.prune(DELETION)

    def _disk_key(self, path: Path) -> DiskKey | None:
        if path.parent.parent != self._layout.instances_dir:
            return None
        instance_id, disk = parse_instance_name(path.parent.name), parse_disk_file_name(path.name)
        if instance_id is None or disk is None:
            return None
        return DiskKey(instance_id=instance_id, name=disk[0])

    def _is_unfinished(self, path: Path) -> bool:
        final = parse_unfinished_name(path.name)
        return final is not None and self._disk_key(path.with_name(final)) is not None

    async def _look_at_disks(self) -> None:
        ready = [disk for disk in await self._catalog.disks() if disk.state is DiskState.READY]
        for disk in await self._store.run_long(self._absent, ready):
            await self._notice(disk.key, seen=False)

    def _absent(self, disks: list[Disk]) -> list[Disk]:
        """Give the disks that lie nowhere; none where the folder may not be mounted."""
        if not _has_entries(self._layout.instances_dir):
            return []
        layout = self._layout
        return [disk for disk in disks if not _is_file(layout.disk(disk.key, disk.format))]

    # --- bases ---------------------------------------------------------------------------------

    async def _look_at_bases(self) -> None:
        if not await self._store.run(_has_entries, self._layout.bases):
            return
        for base in await self._catalog.bases():
            await self._base(FileEventKind.DELETED, self._layout.base(base.base_id, base.format))

    async def _base(self, kind: FileEventKind, path: Path) -> None:
        """Look at a base to which something happened."""
        name = parse_base_name(path.name)
        base = None if name is None else await self._catalog.base(name[0])
        if base is None or base.state is not BaseState.READY or (base.base_id, base.format) != name:
            return
        if base.base_id in self._mending:
            self._mending[base.base_id] = kind
            return
        try:
            length = await self._store.base_length(base.base_id, base.format)
        except OSError as error:
            _log.warning("nobody can tell whether a base is there", path=str(path), why=str(error))
            return
        if length is None or not has_right_length(base, length):
            self._look_after(base, path, self._hooks.lost)
        elif kind in _WRITTEN:
            _log.error("somebody wrote to a base", path=str(path))
            self._look_after(base, path, self._written)

    async def _written(self, base: Base) -> None:
        if expected_digest(base) is None:
            # A digest that is taken now would be that of what somebody wrote.
            await self._hooks.damaged(base, "somebody wrote to it")
            return
        try:
            await self._hooks.verify(base)
        except OSError as error:
            _log.error("a base cannot be verified", base_id=base.base_id, why=str(error))

    def _look_after(
        self, base: Base, path: Path, work: Callable[[Base], Awaitable[object]]
    ) -> None:
        self._mending[base.base_id] = None
        self._background.start(self._mend(base, path, work), f"a look after base {base.base_id}")

    async def _mend(
        self, base: Base, path: Path, work: Callable[[Base], Awaitable[object]]
    ) -> None:
        try:
            await work(base)
        finally:
            again = self._mending.pop(base.base_id)
        if again is not None:
            await self._base(again, path)


def _has_entries(folder: Path) -> bool:
    """Tell whether something lies in a folder; one that cannot be read has nothing."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    """Tell whether a file lies there, and no link to one; what cannot be looked at does not."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
