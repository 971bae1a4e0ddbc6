"""inotify: typed events from watched folders. The one module that imports pyinotify.

Watches are not recursive. The kernel may drop events, and so may we where nobody takes them: then
an ``OVERFLOW`` says that anything may have happened. Whoever reads events looks again, and
never takes silence for a proof.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


class FileEventKind(enum.Enum):
    """What happened. ``WRITTEN``: a writer closed the file."""

    CREATED = enum.auto()
    WRITTEN = enum.auto()
    MOVED_IN = enum.auto()
    MOVED_OUT = enum.auto()
    DELETED = enum.auto()
    FOLDER_GONE = enum.auto()
    OVERFLOW = enum.auto()


_KINDS = {
    pyinotify.IN_CREATE: FileEventKind.CREATED,
    pyinotify.IN_CLOSE_WRITE: FileEventKind.WRITTEN,
    pyinotify.IN_MOVED_TO: FileEventKind.MOVED_IN,
    pyinotify.IN_MOVED_FROM: FileEventKind.MOVED_OUT,
    pyinotify.IN_DELETE: FileEventKind.DELETED,
}
_GONE = pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF | pyinotify.IN_UNMOUNT
_MASK = sum(_KINDS) | pyinotify.IN_DELETE_SELF | pyinotify.IN_MOVE_SELF | pyinotify.IN_ONLYDIR


@dataclass(frozen=True, slots=True)
class FileEvent:
    """One event: ``path`` lies in a watched folder, or is one that is gone; None on overflow."""

    kind: FileEventKind
    path: Path | None
    is_folder: bool


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

    async def watch(self, folder: Path) -> None:
        """Watch a folder; nothing happens where it is watched already.

        What happens in the folder after this returns becomes events. Raises: ``OSError`` with a
        sentence where it is no folder, cannot be read, or where the user has too many watches.
        """
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._add, folder)

    async def unwatch(self, folder: Path) -> None:
        """Watch a folder no longer; nothing happens where it is not watched.

        Events that were read before may still come.
        """
        if not self._closed:
            await self._loop.run_in_executor(self._thread, self._remove, folder)

    async def events(self) -> AsyncIterator[FileEvent]:
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

    def _add(self, folder: Path) -> None:
        if folder in self._descriptors:
            return
        try:
            added = self._manager.add_watch(
                str(folder), _MASK, lambda event: self._take(folder, event), quiet=False
            )
        except pyinotify.WatchManagerError as error:
            raise OSError(f"cannot watch {folder}: {error}") from error
        self._descriptors[folder] = next(iter(added.values()))

    def _remove(self, folder: Path) -> None:
        descriptor = self._descriptors.pop(folder, None)
        if descriptor is not None:
            self._manager.rm_watch(descriptor)

    def _read(self) -> list[FileEvent]:
        self._seen = []
        try:
            self._notifier.read_events()
        except (pyinotify.NotifierError, UnicodeDecodeError):
            # A name that is no UTF-8 costs us everything that was read with it.
            self._seen.append(_OVERFLOW)
        self._notifier.process_events()
        return self._seen

    def _take(self, folder: Path, event: pyinotify.Event) -> None:
        if event.mask & _GONE and folder in self._descriptors:
            # A folder that was moved away is still watched, under a name that is no longer true.
            self._remove(folder)
            self._seen.append(FileEvent(FileEventKind.FOLDER_GONE, folder, is_folder=True))
        for flag, kind in _KINDS.items():
            if event.mask & flag:
                self._seen.append(FileEvent(kind, folder / event.name, event.dir))
