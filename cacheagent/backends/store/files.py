"""What the store does with single files: durable writes, clones that keep holes, sizes.

Everything here blocks, and is meant for the store's own threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.errors import DiskFullError, HostUnavailableError, InvalidRequestError
from cacheagent.model import SpaceUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FICLONE = 0x40049409
"""Share all extents of another file (linux/fs.h); btrfs and XFS with reflink know it."""

FOLDER_MODE = 0o750

STEP = 64 << 20
"""Bytes that are copied at once: a fraction of a second, after which a copy can be stopped."""

NOT_OURS = "is no regular file"

BLOCK_UNIT = 512
"""``st_blocks`` counts in this unit, whatever the file system's block size (stat(2))."""


@contextlib.contextmanager
def space_errors(folder: Path, required_bytes: int) -> Iterator[None]:
    """Turn a full file system or quota into ``DiskFullError`` with the figures."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(
            required_bytes=required_bytes, available_bytes=usage(folder).available
        ) from error


@contextlib.contextmanager
def length_errors() -> Iterator[None]:
    """Turn a file that would be too long for its file system into a mistake of the request."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        problem = "is more than a file can have on this file system"
        raise InvalidRequestError([("size_bytes", problem)]) from error


def usage(folder: Path) -> SpaceUsage:
    """Ask the file system of ``folder`` for its size and what an ordinary user may write."""
    found = os.statvfs(folder)
    return SpaceUsage(
        total=found.f_blocks * found.f_frsize,
        available=found.f_bavail * found.f_frsize,
        inodes=found.f_files,
        inodes_available=found.f_favail,
    )


def allocated(path: Path) -> int:
    """Count the bytes that the file takes on its file system; holes take none."""
    return path.lstat().st_blocks * BLOCK_UNIT


def length(path: Path) -> int | None:
    """Give the length of the file, None where there is none."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def is_regular(path: Path) -> bool:
    """Tell whether a regular file, and no link to one, has this name."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A regular file as it was: another one, or one that was written to since, has another."""

    device: int
    inode: int
    size: int
    modified_ns: int


def identity(path: Path) -> Identity | None:
    """Tell which regular file has this name; None where none has."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return Identity(
        device=found.st_dev,
        inode=found.st_ino,
        size=found.st_size,
        modified_ns=found.st_mtime_ns,
    )


def regular_length(path: Path) -> int | None:
    """Give the length of the regular file, None where none has this name."""
    found = identity(path)
    return None if found is None else found.size


def sync_file(path: Path) -> None:
    """Bring data and size of the file to the device."""
    with open_fd(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Bring the names in the folder to the device, so that a rename outlives a power loss."""
    # A folder may be a link that the operator made; what we write in it is ours all the same.
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path | str, flags: int, mode: int = 0o600, folder: int | None = None) -> int:
    """Open a regular file, and give its descriptor; ``path`` may be relative to ``folder``.

    A link in the last place is not followed, and nothing is waited for: to open a named pipe
    would, until somebody opens its other end.

    Raises:
        OSError: ``ELOOP`` for whatever is no regular file; as ``os.open``.

    """
    safely = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | safely, mode, dir_fd=folder)
    except OSError as error:
        # A pipe that nobody reads, a socket, a device without a driver (open(2)).
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.ELOOP, NOT_OURS, str(path)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, NOT_OURS, str(path))
    return fd


@contextlib.contextmanager
def open_fd(
    path: Path | str, flags: int, mode: int = 0o600, folder: int | None = None
) -> Iterator[int]:
    """Open as ``open_regular``, and close in every case."""
    fd = open_regular(path, flags, mode, folder)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Open a folder that must not be a link; what is done relative to it stays in it.

    Raises:
        OSError: ``ENOTDIR`` for whatever is no folder, a link to one too (open(2)).

    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def make_folder(folder: Path, group: int) -> bool:
    """Make the folder, and tell whether; one that is there keeps the rights that it has."""
    # Of a parent that is a file, it is the parent that the error names.
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not make_own_folder(folder):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(folder))
        return False
    # Whatever has taken its place meanwhile is not what gets the rights.
    with open_folder(folder) as fd:
        give_folder(fd, group)
    return True


def make_own_folder(folder: Path) -> bool:
    """Make the folder, and tell whether: something may have its name. Its rights are for later."""
    try:
        folder.mkdir(FOLDER_MODE, parents=True)
    except FileExistsError:
        return False
    return True


def give_folder(fd: int, group: int) -> None:
    """Give a folder of ours the rights that it is to have, whatever the umask is."""
    give_group(fd, group)
    os.fchmod(fd, FOLDER_MODE)


def give_group(fd: int, group: int) -> None:
    """Give what is open to a group; -1 leaves it to the daemon's own."""
    if group >= 0:
        os.fchown(fd, -1, group)


@contextlib.contextmanager
def foreign_errors() -> Iterator[None]:
    """Say of a name of ours that somebody else has put something there."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        message = f"{error.filename} is a link or another thing that the agent did not make"
        raise HostUnavailableError(message) from error


def truncate(path: Path, size: int) -> None:
    """Give a file of ours another length."""
    with foreign_errors(), open_fd(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, size)


def move(source: Path, target: Path) -> None:
    """Rename within a file system, and make both folders durable."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


class StoppedError(Exception):
    """A copy was told to stop."""


def _never() -> bool:
    return False


def clone(source: Path, target: Path, is_stopped: Callable[[], bool] = _never) -> None:
    """Make ``target``, an empty file, a copy of ``source``: shared extents or equal bytes.

    Holes stay holes. The data is on the device when this returns. ``is_stopped`` is asked between
    steps of a copy.

    Raises:
        StoppedError: it was stopped; the copy is of no use.

    """
    with open_fd(source, os.O_RDONLY) as reader, open_fd(target, os.O_WRONLY) as writer:
        share(reader, writer, is_stopped)
        os.fsync(writer)


def share(reader: int, writer: int, is_stopped: Callable[[], bool] = _never) -> None:
    """Give an empty file the content of another one: shared extents or equal bytes.

    Raises:
        StoppedError: as ``clone``.

    """
    try:
        fcntl.ioctl(writer, FICLONE, reader)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}:
            raise
        _copy_data(reader, writer, is_stopped)


def _copy_data(reader: int, writer: int, is_stopped: Callable[[], bool]) -> None:
    """Copy the runs of data inside the kernel; what lies between them stays a hole."""
    size = os.fstat(reader).st_size
    os.ftruncate(writer, size)
    for start, end in data_runs(reader, size):
        offset = start
        while offset < end:
            if is_stopped():
                raise StoppedError
            copied = _copy_some(reader, writer, offset, min(end - offset, STEP))
            if not copied:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            offset += copied


def _copy_some(reader: int, writer: int, offset: int, length: int) -> int:
    """Copy up to ``length`` bytes at ``offset``, and give how many; 0 at the end of the file."""
    try:
        return os.copy_file_range(reader, writer, length, offset, offset)
    except OSError as error:
        # Not between file systems of different kinds, nor on all of them (copy_file_range(2)).
        if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP}:
            raise
    os.lseek(writer, offset, os.SEEK_SET)
    return os.sendfile(writer, reader, offset, length)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``; the system may take less than it is given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def data_runs(fd: int, size: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Give start and end of each run of data from ``offset`` (lseek(2), SEEK_DATA, SEEK_HOLE)."""
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset
