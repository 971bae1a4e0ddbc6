"""inotify: typed events from watched folders. The one module that imports pyinotify.

A watch is of one folder, and not of those below it; ``watch_tree`` makes one for each of them. The
kernel may drop events, and so may we where nobody takes them: then an ``OVERFLOW`` says that
anything may have happened. Whoever reads events looks again, and never takes silence for a proof.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Set as AbstractSet

with warnings.catch_warnings():
    # pyinotify imports asyncore, which 3.11 calls deprecated, and has string escapes that 3.12
    # warns of. We use neither.
    warnings.simplefilter("ignore")
    import pyinotify

# It writes to stderr by a handler of its own. What it has to say reaches us as errors or events.
pyinotify.log.handlers.clear()
pyinotify.log.setLevel(logging.CRITICAL)

_MOST_WAITING = 16384
"""Events that wait to be taken; with more, all become one ``OVERFLOW``."""

_GATHER = 0.05
"""Seconds in which further events are let come: to read them one by one costs more than they do."""


class FileEventKind(enum.Enum):
    """What happened.

    ``WRITTEN``: a writer closed the file. ``MODIFIED``: its data or its length changed; that is
    told only where it was asked for. ``FOLDER_GONE``: a watched folder was deleted or moved.
    ``UNMOUNTED``: the file system that it lies on has gone. Neither is watched any more.
    """

    CREATED = enum.auto()
    WRITTEN = enum.auto()
    MODIFIED = enum.auto()
    MOVED_IN = enum.auto()
    MOVED_OUT = enum.auto()
    DELETED = enum.auto()
    FOLDER_GONE = enum.auto()
    UNMOUNTED = enum.auto()
    OVERFLOW = enum.auto()


_KINDS = {
    pyinotify.IN_CREATE: FileEventKind.CREATED,
    pyinotify.IN_CLOSE_WRITE: FileEventKind.WRITTEN,
    pyinotify.IN_MODIFY: FileEventKind.MODIFIED,
    pyinotify.IN_MOVED_TO: FileEventKind.MOVED_IN,
    pyinotify.IN_MOVED_FROM: FileEventKind.MOVED_OUT,
    pyinotify.IN_DELETE: FileEventKind.DELETED,
}
_GONE = {
    pyinotify.IN_DELETE_SELF: FileEventKind.FOLDER_GONE,
    pyinotify.IN_MOVE_SELF: FileEventKind.FOLDER_GONE,
    # The kernel tells this unasked (inotify(7)).
    pyinotify.IN_UNMOUNT: FileEventKind.UNMOUNTED,
}
_FOLDER = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF | pyinotify.IN_ONLYDIR
_WITH_MODIFIED = sum(_KINDS) | _FOLDER
_MASK = _WITH_MODIFIED & ~pyinotify.IN_MODIFY


@dataclass(frozen=True, slots=True)
class FileEvent:
    """One event: ``path`` lies in a watched folder, or is one that is gone; None on overflow."""

    kind: FileEventKind
    path: Path | None
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """What ``watch_tree`` came upon.

    ``files`` are all that were no folders when the watch of their folder stood; ``unwatched`` are
    folders that could not be watched, or not be read, and why.
    """

    files: tuple[Path, ...]
    unwatched: Mapping[Path, str]


_OVERFLOW = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)


class Watcher:
    """Watches folders on behalf of one reader of ``events``. Build it by ``open``.

    It belongs to the event loop that opened it. pyinotify looks at the file system here and
    there, so all its work is done by one thread, in order: an event never meets a watch that is
    half made. pyinotify's own adapter for asyncio would do it on the loop.
    """

    def __init__(self, thread: ThreadPoolExecutor, manager: pyinotify.WatchManager) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._manager = manager
        self._fd: int = manager.get_fd()
        self._notifier = pyinotify.Notifier(manager, lambda _event: self._seen.append(_OVERFLOW))
        self._descriptors: dict[Path, int] = {}
        self._seen: list[FileEvent] = []
        self._waiting: asyncio.Queue[FileEvent | None] = asyncio.Queue()
        self._closed = False
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls) -> Self:
        """Build a watcher of nothing yet.

        Raises: ``OSError`` where the user has too many inotify instances.
        """
        thread = ThreadPoolExecutor(1, "inotify")
        try:
            manager = await asyncio.get_running_loop().run_in_executor(
                thread, pyinotify.WatchManager
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, manager)

    @property
    def folders(self) -> frozenset[Path]:
        """The folders that are watched now."""
        return frozenset(self._descriptors)

    async def watch(self, folder: Path, *, modified: bool = False) -> None:
        """Watch a folder; nothing happens where it is watched already.

        What happens in the folder after this returns becomes events, ``MODIFIED`` only if it is
        asked for. Raises: ``OSError`` with a sentence where it is no folder, cannot be read, or
        where the user has too many watches.
        """
        if not self._closed:
            mask = _WITH_MODIFIED if modified else _MASK
            await self._loop.run_in_executor(self._thread, self._add, folder, mask)

    async def watch_tree(self, root: Path, *, skip: AbstractSet[Path] = frozenset()) -> Tree:
        """Watch a folder and all below it, but for those in ``skip`` and what is below them.

        Links to folders are not followed. Each folder is listed when its watch stands: whatever
        comes into it is in the result, or becomes an event, or both. One that goes meanwhile is
        none.
        """
        if self._closed:
            return Tree((), {})
        return await self._loop.run_in_executor(self._thread, self._add_tree, root, skip)

    async def unwatch(self, folder: Path) -> None:
        """Watch a folder no longer; nothing happens where it is not watched.

        Events that were read before may still come.
        """
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._remove, folder)

    async def unwatch_tree(self, root: Path) -> None:
        """Do the same with a folder and all below it; it looks at every folder that is watched."""
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._remove_tree, root)

    async def events(self) -> AsyncGenerator[FileEvent, None]:
        """Give events as they come, until ``close``. One reader at a time."""
        while (event := await self._waiting.get()) is not None:
            yield event

    def close(self) -> None:
        """End all watches, and ``events`` behind what was read until now. It does not wait."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._thread.submit(self._notifier.stop)
            self._thread.shutdown(wait=False)
            self._waiting.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _readable(self) -> None:
        self._loop.remove_reader(self._fd)
        self._loop.call_later(_GATHER, self._begin_reading)

    def _begin_reading(self) -> None:
        if self._closed:
            return
        reading = self._loop.run_in_executor(self._thread, self._read)
        reading.add_done_callback(self._deliver)

    def _deliver(self, reading: asyncio.Future[list[FileEvent]]) -> None:
        if self._closed:
            return
        for event in reading.result():
            self._put(event)
        self._loop.add_reader(self._fd, self._readable)

    def _put(self, event: FileEvent) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:
            while not self._waiting.empty():
                self._waiting.get_nowait()
            event = _OVERFLOW
        self._waiting.put_nowait(event)

    # What follows runs in the thread.

    def _add(self, folder: Path, mask: int = _MASK) -> None:
        if folder in self._descriptors:
            return
        try:
            added = self._manager.add_watch(
                str(folder), mask, lambda event: self._take(folder, event), quiet=False
            )
        except (pyinotify.WatchManagerError, UnicodeError) as error:
            raise OSError(f"cannot watch {folder}: {error}") from error
        self._descriptors[folder] = next(iter(added.values()))

    def _add_tree(self, root: Path, skip: AbstractSet[Path]) -> Tree:
        files: list[Path] = []
        unwatched: dict[Path, str] = {}
        todo = [root]
        while todo:
            folder = todo.pop()
            try:
                self._add(folder)
            except OSError as error:
                unwatched[folder] = str(error)
            try:
                folders, others = _entries(folder)
            except (FileNotFoundError, NotADirectoryError):
                unwatched.pop(folder, None)
                continue
            except OSError as error:
                unwatched[folder] = f"cannot read {folder}: {error.strerror}"
                continue
            files += others
            todo += [each for each in folders if each not in skip]
        return Tree(tuple(files), unwatched)

    def _remove(self, folder: Path) -> None:
        descriptor = self._descriptors.pop(folder, None)
        if descriptor is not None:
            self._manager.rm_watch(descriptor)

    def _remove_tree(self, root: Path) -> None:
        self._remove(root)
        below = f"{root}{os.sep}"
        for folder in [each for each in self._descriptors if str(each).startswith(below)]:
            self._remove(folder)

    def _read(self) -> list[FileEvent]:
        self._seen = []
        try:
            self._notifier.read_events()
        except (pyinotify.NotifierError, UnicodeDecodeError):
            # A name that is no UTF-8 costs us everything that was read with it.
            self._seen.append(_OVERFLOW)
        self._notifier.process_events()
        # pyinotify remembers each move for a minute, and goes over all of them at each read.
        self._notifier._sys_proc_fun._mv_cookie.clear()  # noqa: SLF001 -- it offers no other way
        self._notifier._sys_proc_fun._mv.clear()  # noqa: SLF001
        return self._seen

    def _take(self, folder: Path, event: pyinotify.Event) -> None:
        for flag, kind in _GONE.items():
            # Another folder may bear its name by now, and be watched.
            if event.mask & flag and self._descriptors.get(folder) == event.wd:
                # One that was moved away is still watched, under a name that is no longer true.
                self._remove(folder)
                self._seen.append(FileEvent(kind, folder, is_folder=True))
        for flag, kind in _KINDS.items():
            if event.mask & flag:
                self._seen.append(FileEvent(kind, folder / event.name, event.dir))


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the folders in a folder, and what is none."""
    folders: list[Path] = []
    others: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            (folders if is_folder else others).append(folder / entry.name)
    return folders, others
