"""The disk of an image that is packed, on its way into a file of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cacheagent.backends.unpack import streams
from cacheagent.backends.unpack.package import Package
from cacheagent.policy import containers
from cacheagent.policy.containers import HEAD, Packing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cacheagent.policy.ovf import DiskReference

HOLE: Final = 64 << 10
"""Zeros of this length are left out of the file: a compressed disk is mostly that."""

_ZEROS: Final = bytes(HOLE)


def read_head(path: Path) -> bytes:
    """Give the first bytes of an image, which tell how it is packed."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(fd, HEAD, 0)
    finally:
        os.close(fd)


class Unpacking:
    """Takes the disk out of ``source`` into the new file ``target``, a step at a time.

    Blocking, for a worker thread; to be used by one at a time, and to be closed by whoever made
    it. ``feed`` gets all bytes of the disk in order. Memory is bounded, whatever the image says
    of itself. Once it is open, ``size`` is how long the disk will be, None where that shows at
    the end only, and ``reference`` what an archive says of it.

    Raises:
        ImageUnacceptableError: the image cannot be taken apart.
        OSError: a file cannot be read or written.

    """

    def __init__(
        self, source: Path, target: Path, how: Packing, feed: Callable[[bytes], object]
    ) -> None:
        self._paths = source, target
        self._how = how
        self._feed = feed
        self._length = 0
        self._head = b""
        self._source = self._target = -1
        self._blocks: Iterator[bytes] = iter(())
        self.source_size = 0
        self.size: int | None = None
        self.reference: DiskReference | None = None

    @property
    def position(self) -> int:
        """How much of the source was read, of ``source_size`` bytes."""
        if self.size is not None:
            return self._length
        return os.lseek(self._source, 0, os.SEEK_CUR)

    def open(self) -> None:
        """Open the files, and look at what there is to be taken out."""
        source, target = self._paths
        self._source = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.source_size = os.fstat(self._source).st_size
        self._blocks = self._begin()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._target = os.open(target, flags, 0o600)

    def step(self) -> int | None:
        """Write some more of the disk; give how many bytes, None once all of it is there.

        Raises:
            ImageUnacceptableError: what comes next shows that the image is refused.

        """
        block = next(self._blocks, None)
        if block is None:
            os.truncate(self._target, self._length)
            self._check_head(whole=True)
            return None
        self._feed(block)
        self._write(block)
        return len(block)

    def close(self) -> None:
        """Close the files; what was written stays."""
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)
        self._source = self._target = -1

    def _begin(self) -> Iterator[bytes]:
        if self._how is Packing.OVA:
            package = Package(self._source)
            self.reference, self.size = package.reference, package.disk.size
            return package.blocks()
        compression = containers.compression(os.pread(self._source, HEAD, 0))
        return streams.blocks(lambda count: os.read(self._source, count), compression)

    def _write(self, block: bytes) -> None:
        if len(self._head) < HEAD:
            self._head += block[: HEAD - len(self._head)]
            self._check_head(whole=False)
        for start in range(0, len(block), HOLE):
            piece = block[start : start + HOLE]
            if piece != _ZEROS:
                _write_all(self._target, piece, self._length + start)
        self._length += len(block)

    def _check_head(self, *, whole: bool) -> None:
        if whole or len(self._head) == HEAD:
            containers.refuse_nesting(self._head)


def _write_all(fd: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written
