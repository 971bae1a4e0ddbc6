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

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

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
        folder = self._layout.instance(key.instance_id)
        making = self._layout.unfinished_disk(key, disk_format)
        with self._folders, files.foreign_errors():
            new = files.make_folder(folder, self._group)
            with files.open_folder(folder) as fd:
                _unlink(making.name, fd)
                with files.open_fd(making.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder=fd):
                    pass
        if new:
            files.sync_folder(folder.parent)
        return making

    def clone(self, source: Path, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Make the disk a copy of ``source``; see ``Store.clone_disk``."""
        with files.space_errors(self._layout.instances_dir, source.lstat().st_size):
            making = self.begin(key, disk_format)
            with files.foreign_errors():
                files.clone(source, making)
            return self.finish(key, disk_format)

    def finish(self, key: DiskKey, disk_format: DiskFormat) -> Path:
        """Give the unfinished file its rights and the name of the disk; see ``finish_disk``."""
        making = self._layout.unfinished_disk(key, disk_format)
        path = self._layout.disk(key, disk_format)
        with files.foreign_errors(), files.open_folder(path.parent) as folder:
            with files.open_fd(making.name, os.O_RDONLY, folder=folder) as fd:
                os.fchown(fd, -1, self._group)
                os.fchmod(fd, self._mode)
                os.fsync(fd)
            # Nobody but the holder of the disk's lock makes this name: looking first is enough.
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            os.rename(making.name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        return path

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


def _unlink(name: str, folder: int) -> None:
    """Remove a name from an open folder; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
