"""inotify: typed events from watched folders. The one module that imports pyinotify.

A watch is of one folder, and not of those below it; ``watch_tree`` makes one for each of them. The
kernel may drop events, and so may we where nobody takes them: then an ``OVERFLOW`` says that
anything may have happened. Whoever reads events looks again, and never takes silence for a proof.

pyinotify makes the watches. What the kernel says is read here: its own reader takes ten times as
long for each event, and forgets all that it has read at a name that is no UTF-8.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import struct
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence
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

_MOST_READ = 1 << 20
"""Bytes that are read at once: about as many as all that the kernel keeps by default."""

_HEAD = struct.Struct("iIII")
"""``struct inotify_event`` (inotify(7)): descriptor, mask, cookie, length of the name behind it."""


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
_BITS = sum(_KINDS) | sum(_GONE)
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

    ``files`` are the paths of all that were no folders when the watch of their folder stood;
    ``unwatched`` are folders that could not be watched, or not be read, and why.
    """

    files: tuple[str, ...]
    unwatched: Mapping[Path, str]


_OVERFLOW = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)


class Watcher:
    """Watches folders on behalf of one reader of ``events``. Build it by ``open``.

    It belongs to the event loop that opened it. All that touches the file system is done by one
    thread, in order: an event never meets a watch that is half made.
    """

    def __init__(self, thread: ThreadPoolExecutor, manager: pyinotify.WatchManager) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._manager = manager
        self._fd: int = manager.get_fd()
        # As text: ten thousand paths take several MiB more.
        self._descriptors: dict[str, int] = {}
        self._folders: dict[int, str] = {}
        self._waiting: list[FileEvent] = []
        self._news = asyncio.Event()
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
        return frozenset(map(Path, self._descriptors))

    def watches(self, folder: Path) -> bool:
        """Tell whether a folder is watched now."""
        return str(folder) in self._descriptors

    async def watch(self, folder: Path, *, modified: bool = False) -> None:
        """Watch a folder; nothing happens where it is watched already.

        What happens in the folder after this returns becomes events, ``MODIFIED`` only if it is
        asked for. Raises: ``OSError`` with a sentence where it is no folder, cannot be read, or
        where the user has too many watches.
        """
        if not self._closed:
            mask = _WITH_MODIFIED if modified else _MASK
            await self._loop.run_in_executor(self._thread, self._add, str(folder), mask)

    async def watch_tree(self, *roots: Path, skip: AbstractSet[Path] = frozenset()) -> Tree:
        """Watch folders and all below them, but for those in ``skip`` and what is below them.

        Links to folders are not followed. Each folder is listed when its watch stands: whatever
        comes into it is in the result, or becomes an event, or both. One that goes meanwhile is
        none.
        """
        if self._closed:
            return Tree((), {})
        skipped = frozenset(map(str, skip))
        return await self._loop.run_in_executor(self._thread, self._add_trees, roots, skipped)

    async def unwatch(self, *folders: Path) -> None:
        """Watch folders no longer; nothing happens where they are not watched.

        Events that were read before may still come.
        """
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._remove, [*map(str, folders)])

    async def unwatch_tree(self, *roots: Path) -> None:
        """Do the same with folders and all below; it looks once at every folder that is watched."""
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._remove_trees, roots)

    async def events(self) -> AsyncGenerator[Sequence[FileEvent], None]:
        """Give all events that wait, in order, whenever there are some, until ``close``.

        One reader at a time. What comes while it works on some is together the next that it gets.
        """
        while self._waiting or not self._closed:
            if self._waiting:
                events, self._waiting = self._waiting, []
                yield events
            else:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        """End all watches, and ``events`` behind what was read until now. It does not wait."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._thread.submit(self._manager.close)
            self._thread.shutdown(wait=False)
            self._news.set()

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
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(event)
            else:
                self._waiting = [_OVERFLOW]
        self._news.set()
        self._loop.add_reader(self._fd, self._readable)

    # What follows runs in the thread.

    def _add(self, folder: str, mask: int = _MASK) -> None:
        if folder in self._descriptors:
            return
        try:
            added = self._manager.add_watch(folder, mask, quiet=False)
        except (pyinotify.WatchManagerError, UnicodeError) as error:
            raise OSError(f"cannot watch {folder}: {error}") from error
        descriptor = next(iter(added.values()))
        # Its own note of a watch takes half a KiB, and nothing here asks for it.
        self._manager.watches.pop(descriptor, None)
        self._descriptors[folder] = descriptor
        self._folders[descriptor] = folder

    def _add_trees(self, roots: tuple[Path, ...], skip: AbstractSet[str]) -> Tree:
        files: list[str] = []
        unwatched: dict[str, str] = {}
        todo = [*map(str, roots)]
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
        return Tree(tuple(files), {Path(each): why for each, why in unwatched.items()})

    def _remove(self, folders: Iterable[str]) -> None:
        for folder in folders:
            descriptor = self._descriptors.pop(folder, None)
            if descriptor is not None:
                self._folders.pop(descriptor, None)
                self._manager.rm_watch(descriptor)

    def _remove_trees(self, roots: tuple[Path, ...]) -> None:
        below = tuple(f"{root}{os.sep}" for root in roots)
        self._remove(map(str, roots))
        self._remove([each for each in self._descriptors if each.startswith(below)])

    def _read(self) -> list[FileEvent]:
        events = []
        try:
            # The loop has just seen that there is something to read: this does not wait.
            data = os.read(self._fd, _MOST_READ)
        except OSError:
            return [_OVERFLOW]
        at = 0
        while at < len(data):
            descriptor, mask, _cookie, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size + length
            event = self._meaning(descriptor, mask, data[at - length : at].rstrip(b"\0"))
            if event is not None:
                events.append(event)
        return events

    def _meaning(self, descriptor: int, mask: int, name: bytes) -> FileEvent | None:
        if mask & pyinotify.IN_Q_OVERFLOW:
            return _OVERFLOW
        if mask & pyinotify.IN_IGNORED:
            # The last of each watch, whoever ended it.
            return None
        folder = self._folders.get(descriptor)
        if folder is None:
            return None
        # Each event has one of these bits.
        happened = mask & _BITS
        if (kind := _KINDS.get(happened)) is None:
            return self._end(folder, happened)
        try:
            return FileEvent(kind, Path(folder, name.decode()), bool(mask & pyinotify.IN_ISDIR))
        except UnicodeDecodeError:
            return _OVERFLOW

    def _end(self, folder: str, how: int) -> FileEvent:
        if how == pyinotify.IN_MOVE_SELF:
            # It is still watched, under a name that is no longer true.
            self._remove([folder])
        else:
            del self._folders[self._descriptors.pop(folder)]
        return FileEvent(_GONE[how], Path(folder), is_folder=True)


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """List the folders in a folder, and what is none."""
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            (folders if is_folder else others).append(entry.path)
    return folders, others
