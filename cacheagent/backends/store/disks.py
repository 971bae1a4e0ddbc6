"""The files of disks: begun under an unfinished name, finished, removed.

Others may write where the disks lie. So an instance's folder is opened once, as the folder that it
must be, and what is done in it is done relative to that: no link that somebody plants leads out.
Everything here blocks, and is meant for the store's own threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from cacheagent.backends.store import files
from cacheagent.backends.store.templates import Template
from cacheagent.model import Base, DiskFormat, DiskKey
from cacheagent.policy.layout import unfinished
from cacheagent.policy.verification import has_right_length
from cacheagent.sync.lane import attempt
from cacheagent.sync.lockstep import lockstep

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from cacheagent.backends.store.files import Identity
    from cacheagent.policy.layout import Layout
    from cacheagent.sync.lane import Ended


SYNCS = 8
"""Files and folders that are brought to the device at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A disk that is wanted as a copy of the template of its base; a blank one has no base."""

    template: Template
    key: DiskKey
    format: DiskFormat
    base: Base | None


class DiskFiles:
    """The files of all disks of one layout; ``group`` owns them, -1 is the daemon's own.

    Every method raises ``HostUnavailableError`` where somebody else has put a link, or another
    thing that is no file, in the place of a folder or a file of ours.
    """

    def __init__(self, layout: Layout, group: int, mode: int) -> None:
        self._layout = layout
        self._group = group
        self._mode = mode
        # Between the making of a folder and that of its first file, nobody removes the folder.
        self._folders = threading.Lock()
        # Folders that were made, and are not known to be on the device: whoever made one may fail.
        self._fresh: set[Path] = set()
        self._syncs = ThreadPoolExecutor(SYNCS - 1, "store-sync")

    def close(self) -> None:
        """End the threads; nothing is being made any more."""
        self._syncs.shutdown()

    def begin(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Make the empty file that becomes the disk, and give its unfinished name."""
        path = self._layout.disk(key, disk_format)
        making = unfinished(path)
        with files.foreign_errors(), self._begun(path, making) as (_folder, file, fresh):
            os.close(file)
        if fresh:
            files.sync_folder(path.parent.parent)
            self._fresh.discard(path.parent)
        return making

    def clone_all(self, clones: Sequence[Clone]) -> list[Ended]:
        """Make disks as copies of their templates; see ``Store.clone_disk``.

        All of them wait for the device together, and what all need is done once: a look at base
        and template, the fsync of the folder that theirs lie in.
        """
        look = cache(files.identity)
        with contextlib.ExitStack() as stack:
            parent = cache(partial(_opened, self._layout.instances_dir, stack))
            return lockstep([self._clone(each, look, parent) for each in clones], self._sync)

    def _clone(
        self, clone: Clone, look: Callable[[Path], Identity | None], parent: Callable[[], int]
    ) -> Generator[tuple[int, ...], None, bool]:
        """Make one disk; it yields what has to be brought to the device before it goes on."""
        if look(clone.template.path) != clone.template.identity:
            return False
        if (base := clone.base) is not None:
            found = look(self._layout.base(base.base_id, base.format))
            if found is None or not has_right_length(base, found.size):
                return False
        path = self._layout.disk(clone.key, clone.format)
        making = unfinished(path)
        with (
            files.space_errors(self._layout.instances_dir, clone.template.size),
            files.foreign_errors(),
            self._begun(path, making) as (folder, file, fresh),
        ):
            try:
                _fill(file, clone.template)
                self._give_rights(file)
                yield (file, parent()) if fresh else (file,)
                self._fresh.discard(path.parent)
            finally:
                os.close(file)
            with _named(folder, making, path):
                yield (folder,)
        return True

    def _sync(self, wanted: Sequence[tuple[int, ...]]) -> list[Ended]:
        """Bring to the device what is wanted, each once and several at the same time.

        What file systems do for one fsync, a commit of their journal and a flush of the device,
        serves those that wait with it.
        """
        fds = sorted({fd for each in wanted for fd in each})
        groups = [group for start in range(SYNCS) if (group := fds[start::SYNCS])]
        others = [self._syncs.submit(_sync_each, group) for group in groups[1:]]
        errors = _sync_each(groups[0])
        for other in others:
            errors |= other.result()
        return [(None, next((errors[fd] for fd in each if fd in errors), None)) for each in wanted]

    def finish(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Give the unfinished file its rights and the name of the disk; see ``finish_disk``."""
        path = self._layout.disk(key, disk_format)
        making = unfinished(path)
        with files.foreign_errors(), files.open_folder(path.parent) as folder:
            with files.open_fd(making.name, os.O_RDONLY, folder=folder) as fd:
                self._give_rights(fd)
                os.fsync(fd)
            with _named(folder, making, path):
                os.fsync(folder)
        return path

    @contextlib.contextmanager
    def _begun(self, path: Path, making: Path) -> Iterator[tuple[int, int, bool]]:
        """Make the unfinished file; give its folder, open, itself, and whether that is fresh.

        The name of a fresh folder is yet to be brought to the device.
        """
        with contextlib.ExitStack() as stack:
            with self._folders:
                if new := files.make_own_folder(path.parent):
                    self._fresh.add(path.parent)
                fresh = path.parent in self._fresh
                folder = stack.enter_context(files.open_folder(path.parent))
                if new:
                    files.give_folder(folder, self._group)
                else:
                    _unlink(making.name, folder)
                # What was made just now is no link, and no pipe (open(2), O_EXCL).
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                file = os.open(making.name, flags, 0o600, dir_fd=folder)
            yield folder, file, fresh

    def _give_rights(self, fd: int) -> None:
        files.give_group(fd, self._group)
        os.fchmod(fd, self._mode)

    def remove(self, key: DiskKey, names: Iterable[str]) -> None:
        """Remove files of the instance, and its folder where they were all that was in it."""
        folder = self._layout.instance(key.instance_id)
        with (
            self._folders,
            files.foreign_errors(),
            # One that was gone before has gone all the same.
            contextlib.suppress(FileNotFoundError),
            files.open_folder(folder) as fd,
        ):
            for name in names:
                _unlink(name, fd)
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                os.fsync(fd)
                return
            self._fresh.discard(folder)
        files.sync_folder(folder.parent)


def _opened(folder: Path, stack: contextlib.ExitStack) -> int:
    """Open the folder of all instances, which may be a link that the operator made."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _sync_each(fds: Sequence[int]) -> dict[int, BaseException]:
    """Bring each to the device, and give the errors by descriptor."""
    outcomes = [(fd, attempt(partial(os.fsync, fd))) for fd in fds]
    return {fd: error for fd, (_, error) in outcomes if error is not None}


def _fill(file: int, template: Template) -> None:
    """Write the content of a template to an empty file."""
    if template.blocks is None:
        with files.open_fd(template.path, os.O_RDONLY) as source:
            files.share(source, file)
        return
    for offset, block in template.blocks:
        files.write_all(file, block, offset)
    os.ftruncate(file, template.size)


@contextlib.contextmanager
def _named(folder: int, making: Path, path: Path) -> Iterator[None]:
    """Give the unfinished file the name of the disk; the body makes that durable, or it goes."""
    # Nobody but the holder of the disk's lock makes this name: looking first is enough.
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    os.rename(making.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        yield
    except BaseException:
        # Else the next try would take it for somebody else's.
        _unlink(path.name, folder)
        raise


def _unlink(name: str, folder: int) -> None:
    """Remove a name from an open folder; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
