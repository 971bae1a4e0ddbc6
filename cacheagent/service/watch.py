"""What events of files mean: a disk was taken away, a base is no longer what it was.

An event only says where to look. What counts is what catalog and files say then, so that our own
deeds, which cause events as well, come to nothing.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.inotify import FileEventKind
from cacheagent.model import Base, BaseState, DiskState
from cacheagent.policy.layout import parse_base_name
from cacheagent.policy.verification import expected_digest, has_right_length
from cacheagent.service.places import WENT, disks, instances, places

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.inotify import FileEvent, Watcher
    from cacheagent.model import BaseId, Disk, DiskKey
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts
    from cacheagent.service.places import Places
    from cacheagent.service.watched import Watched

DELETION = "deletion"
"""The trigger of a pass of the pruner that follows a file that has gone."""

_AT_ONCE = 32
"""Disks that went and are looked at together: that takes half of what it takes one by one."""

_PAGE = 1000
"""Instances whose disks are looked at together: all of ten thousand would take some MiB."""

_GONE = {*WENT, FileEventKind.FOLDER_GONE}
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

    async def take(self, watcher: Watcher, events: Sequence[FileEvent]) -> bool:
        """Do what events ask for; False where all watches have to be made anew."""
        for number, event in enumerate(events):
            if self._is_the_end(event):
                await self._look(watcher, places(self._layout, events[:number]))
                return self.doubt()
        await self._look(watcher, places(self._layout, events))
        return True

    def doubt(self) -> bool:
        """Have everything compared, since nobody knows what happened; gives False."""
        self._hooks.reconcile()
        self._hooks.prune(DELETION)
        return False

    def _is_the_end(self, event: FileEvent) -> bool:
        """Tell whether the watches are no good after this event."""
        kind, path = event.kind, event.path
        if path is None:
            self._overflows.inc()
            _log.warning("events of files were lost; everything is looked at again")
            return True
        gone = kind in _GONE and self._watched.is_root(path)
        if gone or kind is FileEventKind.UNMOUNTED:
            _log.error("a watched folder has gone", path=str(path), how=kind.name.lower())
            return True
        return False

    async def _look(self, watcher: Watcher, where: Places) -> None:
        lying = await self._watched.follow(
            watcher, deleted=where.deleted, moved=where.moved, came=where.came
        )
        await self._look_for_disks(where, lying)
        if where.freed or where.moved:
            # Nobody tells what went with a folder; one that is deleted was emptied before.
            self._hooks.prune(DELETION)
        for kind, path in where.bases:
            await self._base(kind, path)

    # --- disks, and overlays of others -------------------------------------------------------

    async def _look_for_disks(self, where: Places, files: Iterable[Path]) -> None:
        """Find disks that nobody knows, and those that are known and have gone.

        ``files`` lay in the folders that came when those were watched. What happened to them
        before is not told; what happens from then on is.
        """
        lying, unfinished = disks(self._layout, files)
        found = {**where.files, **lying}
        left = instances(self._layout, (*where.deleted, *where.moved))
        new = instances(self._layout, where.came)
        concerned = left | new | {key.instance_id for key in (*where.gone, *found)}
        known = await self._catalog.disk_states(concerned) if concerned else {}
        await self._compare([file for key, file in found.items() if key not in known])
        gone = {key for key in known if key in where.gone or key.instance_id in left}
        # Whoever gives an unfinished file its name from here on is seen doing it.
        making = {key for key in unfinished if known.get(key) is DiskState.PENDING}
        came = {key for key in known if key.instance_id in new}
        await self._disks_went({key: known[key] for key in gone}, seen=True)
        absent = came - gone - making - lying.keys()
        await self._disks_went({key: known[key] for key in absent}, seen=False)

    async def _compare(self, unknown: Iterable[Path]) -> None:
        """Have everything compared if one of these files, which nobody knows, is there."""
        for file in unknown:
            if await self._store.exists(file):
                self._hooks.reconcile()
                return

    async def _disks_went(self, went: Mapping[DiskKey, DiskState], *, seen: bool) -> None:
        """Drop those that have really gone, some at a time: requests do not wait behind all."""
        looks = [partial(self._disk_went, key, state, seen=seen) for key, state in went.items()]
        while looks:
            some, looks = looks[:_AT_ONCE], looks[_AT_ONCE:]
            for ended in await asyncio.gather(*(look() for look in some), return_exceptions=True):
                if isinstance(ended, BaseException):
                    raise ended

    async def _disk_went(self, key: DiskKey, state: DiskState, *, seen: bool) -> None:
        """Drop a disk that has really gone."""
        if state is DiskState.READY:
            await self._notice(key, seen=seen)
        elif state is DiskState.PENDING and key not in self._pending:
            # It may have gone in the moment in which it was made, and that may take a while.
            self._pending.add(key)
            self._background.start(self._when_made(key, seen=seen), "a look at a disk")

    async def _when_made(self, key: DiskKey, *, seen: bool) -> None:
        try:
            await self._notice(key, seen=seen)
        finally:
            self._pending.discard(key)

    async def _notice(self, key: DiskKey, *, seen: bool) -> None:
        if await self._creation.notice(key, seen=seen):
            self._hooks.prune(DELETION)

    async def _look_at_disks(self) -> None:
        last = None
        while disks := await self._catalog.next_disks(last, _PAGE):
            last = disks[-1].key.instance_id
            ready = [disk for disk in disks if disk.state is DiskState.READY]
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
