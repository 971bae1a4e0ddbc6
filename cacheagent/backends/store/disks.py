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
from typing import TYPE_CHECKING

from cacheagent.backends.store import files
from cacheagent.policy.layout import unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cacheagent.backends.store.templates import Template
    from cacheagent.model import DiskFormat, DiskKey
    from cacheagent.policy.layout import Layout


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

    def begin(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Make the empty file that becomes the disk, and give its unfinished name."""
        path = self._layout.disk(key, disk_format)
        making = unfinished(path)
        with self._begun(path, making) as (_folder, file, new):
            os.close(file)
        if new:
            files.sync_folder(path.parent.parent)
        return making

    def clone(self, template: Template, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Make the disk a copy of the template; see ``Store.clone_disk``."""
        path = self._layout.disk(key, disk_format)
        making = unfinished(path)
        with (
            files.space_errors(self._layout.instances_dir, template.size),
            files.foreign_errors(),
            self._begun(path, making) as (folder, file, new),
        ):
            try:
                _fill(file, template)
                self._finish(file)
            finally:
                os.close(file)
            _rename(folder, making, path)
            if new:
                files.sync_folder(path.parent.parent)
        return path

    def finish(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Give the unfinished file its rights and the name of the disk; see ``finish_disk``."""
        path = self._layout.disk(key, disk_format)
        making = unfinished(path)
        with files.foreign_errors(), files.open_folder(path.parent) as folder:
            with files.open_fd(making.name, os.O_RDONLY, folder=folder) as fd:
                self._finish(fd)
            _rename(folder, making, path)
        return path

    @contextlib.contextmanager
    def _begun(self, path: Path, making: Path) -> Iterator[tuple[int, int, bool]]:
        """Make the unfinished file; give its folder, open, itself, and whether that is new."""
        with contextlib.ExitStack() as stack:
            with self._folders, files.foreign_errors():
                new = files.make_folder(path.parent, self._group)
                folder = stack.enter_context(files.open_folder(path.parent))
                _unlink(making.name, folder)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                file = files.open_regular(making.name, flags, folder=folder)
            yield folder, file, new

    def _finish(self, fd: int) -> None:
        os.fchown(fd, -1, self._group)
        os.fchmod(fd, self._mode)
        os.fsync(fd)

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
        files.sync_folder(folder.parent)


def _fill(file: int, template: Template) -> None:
    """Write the content of a template to an empty file."""
    if template.blocks is None:
        with files.open_fd(template.path, os.O_RDONLY) as source:
            files.share(source, file)
        return
    for offset, block in template.blocks:
        os.lseek(file, offset, os.SEEK_SET)
        files.write_all(file, block)
    os.ftruncate(file, template.size)


def _rename(folder: int, making: Path, path: Path) -> None:
    """Give the unfinished file the name of the disk, durably."""
    # Nobody but the holder of the disk's lock makes this name: looking first is enough.
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    os.rename(making.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _unlink(name: str, folder: int) -> None:
    """Remove a name from an open folder; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
