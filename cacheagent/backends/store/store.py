"""The bytes on disk: nobody else opens a path in our folders.

Each deed ends durable: data, then name, then folder. Whatever a crash leaves behind is either
complete, or has a name that ``policy.layout`` knows as unfinished.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING, TypeVar

from cacheagent.backends.store import files, spare
from cacheagent.backends.store.bases import BaseFiles, read_manifest
from cacheagent.backends.store.disks import Clone, DiskFiles
from cacheagent.backends.store.listing import list_folders
from cacheagent.backends.store.part import Part, recorded_bytes
from cacheagent.backends.store.reread import Rereading
from cacheagent.backends.store.templates import Templates, read_template
from cacheagent.errors import ConfigError, StateDirBusyError
from cacheagent.model import DiskFormat
from cacheagent.policy.layout import unfinished
from cacheagent.sync.lane import CallLane, Ended, Lane
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from cacheagent.backends.store.manifest import Manifest
    from cacheagent.backends.store.templates import Template
    from cacheagent.model import Base, BaseId, DiskKey, GlanceImage, ImageId, SpaceUsage
    from cacheagent.policy.inventory import Listing
    from cacheagent.policy.layout import Layout

T = TypeVar("T")

THREADS = 4
"""Short deeds at once: each is mostly waiting for the device."""

MOST_CLONED = 64
"""Disks that one thread clones together; each has two open files meanwhile."""

LONG_THREADS = 2
"""Walks through folders at once, and copies of whole disks: neither waits for the other."""

LEAST_ROOM = 4096
"""What is said to be needed where a small write finds no room: a block."""


class Store:
    """The folders of one agent. Every coroutine works in the store's threads."""

    def __init__(self, layout: Layout, *, group: int | None, disk_mode: int) -> None:
        self.layout = layout
        self._group = -1 if group is None else group
        self._base_files = BaseFiles(layout, self._group)
        self._disk_files = DiskFiles(layout, self._group, disk_mode)
        self._short = CallLane(THREADS, "store")
        self._long = CallLane(LONG_THREADS, "store-long")
        self._copies = CallLane(LONG_THREADS, "store-copy")
        self._clones = Lane(1, "store-disks", self.clone_disks, MOST_CLONED)
        self._templates = Templates()
        self._freeing: set[asyncio.Future[None]] = set()
        self._lock_fd: int | None = None

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run ``work`` in one of the store's threads; who is cancelled waits for its end.

        Raises:
            InsufficientSpaceError: the file system is full.
            InvalidRequestError: a file would be longer than the file system takes.

        """
        return await self._run_in(self._short, work, *arguments)

    async def run_long(self, work: Callable[..., T], *arguments: object) -> T:
        """Do the same for work that takes long, beside that which requests wait for."""
        return await self._run_in(self._long, work, *arguments)

    async def _run_in(self, lane: CallLane, work: Callable[..., T], *arguments: object) -> T:
        def guarded() -> T:
            with files.space_errors(self.layout.state_dir, LEAST_ROOM), files.length_errors():
                return work(*arguments)

        return await lane.run(guarded)

    # --- the folders -----------------------------------------------------------------------

    async def open(self) -> None:
        """Make the folders that are missing, and take the state folder for this agent alone.

        Raises:
            StateDirBusyError: another agent holds it.
            ConfigError: a link, or another thing that is no file, has the name of a file of ours.

        """
        await self.run(self._open)

    def _open(self) -> None:
        layout = self.layout
        for folder in (
            layout.state_dir,
            layout.bases,
            layout.ingest,
            layout.templates,
            layout.trash,
            layout.quarantine,
            layout.instances_dir,
        ):
            if files.make_folder(folder, self._group):
                files.sync_folder(folder.parent)
        for path in (layout.lock, layout.spare, *_database(layout.catalog)):
            if os.path.lexists(path) and not files.is_regular(path):
                raise ConfigError(f"storage.state_dir: {path} is no regular file")
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StateDirBusyError(f"another agent holds {layout.lock}") from None
        self._lock_fd = fd
        spare.keep(layout.spare)

    async def close(self) -> None:
        """Let the state folder go; work that is under way ends first."""
        for lane in (self._clones, self._short, self._long, self._copies):
            await lane.close()
        await asyncio.to_thread(self._disk_files.close)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    async def usage(self) -> SpaceUsage:
        """Measure the file system that the bases lie on."""
        await self._freed()
        return await self.run(files.usage, self.layout.bases)

    async def disk_usage(self) -> SpaceUsage:
        """Measure the file system that the disks lie on."""
        await self._freed()
        return await self.run(files.usage, self.layout.instances_dir)

    async def is_one_file_system(self) -> bool:
        """Tell whether bases and disks share their room."""
        return await self.run(_same_device, self.layout.bases, self.layout.instances_dir)

    async def allocated(self, path: Path) -> int:
        """Count the bytes that a file of ours takes on its file system."""
        return await self.run(files.allocated, path)

    async def listing(self) -> Listing:
        """List what lies in our folders."""
        return await self.run(list_folders, self.layout)

    async def read_manifest(self, base_id: BaseId, disk_format: DiskFormat) -> Manifest | None:
        """Read the manifest of a base; None where there is none that is any use."""
        return await self.run(read_manifest, self.layout, base_id, disk_format)

    # --- ingests ---------------------------------------------------------------------------

    def part(
        self, image: GlanceImage, give_way: Callable[[], bool] = lambda: False
    ) -> contextlib.AbstractAsyncContextManager[Part]:
        """Open the file that the image arrives in; see ``Part.open``."""
        path = self.layout.part(image.image_id)
        return Part.open(path, self.layout.part_record(image.image_id), image, give_way)

    async def arrived_bytes(self, image: GlanceImage) -> int:
        """Count the bytes of the image that an earlier ingest left for another to go on from."""
        length = await self.run(files.length, self.layout.part(image.image_id))
        if length != image.size:
            return 0
        return await recorded_bytes(self.layout.part_record(image.image_id), image)

    async def discard_ingest(self, image_id: ImageId) -> None:
        """Remove whatever an ingest of the image left.

        The names go at once. To give their room back takes some file systems a while, a fifth of a
        second for each GiB: nobody waits for that but ``usage`` and ``disk_usage``.
        """
        layout = self.layout
        record = layout.part_record(image_id)
        made = (layout.unpacked(image_id), *(layout.conversion(image_id, f) for f in DiskFormat))
        left = (layout.part(image_id), record, unfinished(record), *made)
        await uninterrupted(self._discard(left))

    async def _discard(self, paths: Iterable[Path]) -> None:
        held = await self.run(_unlink_held, paths)
        freeing = self._long.run(held.close)
        self._freeing.add(freeing)
        freeing.add_done_callback(self._freeing.discard)

    async def _freed(self) -> None:
        """Wait for the room of what was discarded."""
        if self._freeing:
            await asyncio.wait(self._freeing)

    async def partial_bytes(self) -> int:
        """Count the bytes that unfinished downloads and conversions take."""
        return await self.run(_allocated_in, self.layout.ingest)

    async def cache_bytes(self) -> int:
        """Count the bytes that all bases, damaged ones too, and unfinished ingests take."""
        return await self.run(self._cache_bytes)

    def _cache_bytes(self) -> int:
        # The folder that files move from goes first: one on its way counts twice, never not.
        layout = self.layout
        return sum(map(_allocated_in, (layout.ingest, layout.bases, layout.quarantine)))

    # --- bases -----------------------------------------------------------------------------

    async def publish(self, source: Path, record: Manifest) -> Manifest:
        """Give a verified file the name of its base, after its manifest; from then on it is one.

        Returns the manifest with the bytes that the file was measured to take.

        Raises:
            InsufficientSpaceError: there is no room even for the manifest.

        """
        return await self.run(self._base_files.publish, source, record)

    async def write_manifest(self, record: Manifest) -> None:
        """Replace the manifest of a base that is there."""
        await self.run(self._base_files.write_manifest, record)

    async def base_length(self, base_id: BaseId, disk_format: DiskFormat) -> int | None:
        """Give the length of the base's file; None where no regular file lies where it should."""
        return await self.run(files.regular_length, self.layout.base(base_id, disk_format))

    def reread(
        self, base: Base, feed: Callable[[memoryview], object]
    ) -> contextlib.AbstractAsyncContextManager[Rereading]:
        """Open the base to be read again from its beginning; see ``Rereading.open``."""
        return Rereading.open(self.layout.base(base.base_id, base.format), feed)

    async def quarantine_base(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Take a damaged base out of ``bases/``, and then its manifest; the templates stay."""
        await self.run(self._base_files.quarantine, base_id, disk_format)

    async def drop_quarantined(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Remove a damaged base from quarantine, and its manifest; none there is fine."""
        await self.run(self._base_files.drop_quarantined, base_id, disk_format)

    async def trash_base(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Take base and manifest out of ``bases/`` into the trash; the templates go.

        The base goes first: whatever is in ``bases/`` has its manifest beside it at any moment.
        A crash in between leaves the manifest there, and the next start (``service.reconcile``)
        either puts the base back beside it or removes both.
        """
        await self.run(self._base_files.trash, base_id, disk_format)

    async def restore_base(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Put a base back that lies in the trash, with its manifest; what has its name stays.

        The manifest goes first, as when the base was published. A crash in between leaves what
        one in ``trash_base`` leaves, and the next start mends it as that.
        """
        await self.run(self._base_files.restore, base_id, disk_format)

    async def drop_trashed(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Remove a base from the trash, and then its manifest: without it nobody wants that."""
        await self.run(self._base_files.drop_trashed, base_id, disk_format)

    async def empty_trash(self) -> None:
        """Remove the bases that were thrown away; whatever else lies there is not ours."""
        await self.run(self._base_files.empty_trash)

    # --- disks -----------------------------------------------------------------------------

    async def exists(self, path: Path) -> bool:
        """Tell whether a regular file of ours has this name."""
        return await self.run(files.is_regular, path)

    async def instances_folder(self) -> tuple[str, bool]:
        """Tell which folder that of the instances is, of which file system; and if it is empty."""
        return await self.run(_look_at, self.layout.instances_dir)

    async def finish_template(self, template: Path) -> None:
        """Give an empty overlay, made under its unfinished name, the one to clone it by."""
        await self.run(files.sync_file, unfinished(template))
        await self.run(files.move, unfinished(template), template)

    async def begin_disk(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Make the empty file that becomes the disk, and give its unfinished name."""
        return await self.run(self._disk_files.begin, key, disk_format)

    async def template(self, path: Path) -> Template | None:
        """Give a template, from memory where it was used lately; None where there is none."""
        if (kept := self._templates.get(path)) is not None:
            return kept
        if (found := await self.run(read_template, path)) is not None:
            self._templates.keep(found)
        return found

    def kept_template(self, path: Path) -> Template | None:
        """Give a template from memory, None where it is not there; for any thread."""
        return self._templates.get(path)

    async def clone_disk(self, clone: Clone) -> bool:
        """Make a disk from the template of its base; False where one of the two is not as it was.

        Raises:
            InsufficientSpaceError: the file system is full.
            FileExistsError: as ``finish_disk``.

        """
        made: bool = await self._clones.run(clone)
        return made

    def clone_disks(self, clones: Sequence[Clone]) -> list[Ended]:
        """Do what ``clone_disk`` does for several at once, and give what comes of each.

        For threads other than the event loop's: it blocks.
        """
        ended = self._disk_files.clone_all(clones)
        for clone, (made, error) in zip(clones, ended, strict=True):
            if error is None and not made:
                self._templates.forget(clone.template.path)
        return ended

    async def copy_base(self, source: Path, target: Path, size: int) -> None:
        """Copy a raw base for a full disk of ``size`` bytes; what is beyond the base is a hole.

        Who is cancelled waits for one step of the copy, not for the whole.

        Raises:
            InsufficientSpaceError: the file system is full.

        """
        stop = threading.Event()
        copying = self._run_in(self._copies, files.clone, source, target, stop.is_set)
        await uninterrupted(copying, on_cancel=stop.set)
        await self.run(files.truncate, target, size)

    async def make_hole(self, path: Path, size: int) -> None:
        """Make an empty file ``size`` bytes long, without data."""
        await self.run(files.truncate, path, size)

    async def finish_disk(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Give the unfinished file its rights and the name of the disk, durably.

        Raises:
            FileExistsError: the name is taken by a file that the catalog does not know.

        """
        return await self.run(self._disk_files.finish, key, disk_format)

    async def remove_disk(self, key: DiskKey, disk_format: DiskFormat) -> None:
        """Remove the disk and what is left of its making, and the folder where that was all."""
        layout = self.layout
        paths = (layout.disk(key, disk_format), layout.unfinished_disk(key, disk_format))
        names = tuple(path.name for path in paths)
        await self.run(self._disk_files.remove, key, names)

    async def abandon_disk(self, key: DiskKey) -> None:
        """Remove what an attempt to make the disk has left, and the folder where that was all."""
        names = tuple(self.layout.unfinished_disk(key, fmt).name for fmt in DiskFormat)
        await self.run(self._disk_files.remove, key, names)

    async def remove(self, paths: Iterable[Path]) -> None:
        """Remove files of ours that a plan names."""
        await self.run(_remove_all, tuple(paths))


def _database(path: Path) -> tuple[Path, ...]:
    """Give the files of a database of SQLite, which follows links."""
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _unlink_held(paths: Iterable[Path]) -> contextlib.ExitStack:
    """Remove the names of files; what has them open keeps their room until it is closed."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            # A link, or another thing that is not ours, just goes.
            with contextlib.suppress(OSError):
                stack.callback(os.close, files.open_regular(path, os.O_RDONLY))
            path.unlink(missing_ok=True)
        return stack.pop_all()


def _look_at(folder: Path) -> tuple[str, bool]:
    with os.scandir(folder) as entries:
        is_empty = next(entries, None) is None
    return f"{os.statvfs(folder).f_fsid}:{folder.stat().st_ino}", is_empty


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _allocated_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        # A download may end, and its file go, while the folder is read.
        with contextlib.suppress(FileNotFoundError):
            total += files.allocated(path)
    return total
