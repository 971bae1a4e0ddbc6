"""A base is read again, past the page cache where the file system can: what lies on the device.

Blocks without data are not read: they count as the zeros that they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from cacheagent.backends.store import files
from cacheagent.backends.store.part import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from concurrent.futures import Executor
    from pathlib import Path


class Rereading:
    """Hands a file to ``feed`` block by block, in a thread of its own. Made by ``open``.

    ``length`` is how much of the file was handed over, ``read`` how much of that was no hole.
    """

    def __init__(self, path: Path, feed: Callable[[memoryview], object], thread: Executor) -> None:
        self.length = 0
        self.read = 0
        self._path = path
        self._feed = feed
        self._thread = thread
        # Anonymous memory is page-aligned, as direct I/O wants it, and zero as long as nobody
        # writes there.
        self._block = memoryview(mmap.mmap(-1, BLOCK_SIZE))
        self._zeros = memoryview(mmap.mmap(-1, BLOCK_SIZE)).toreadonly()
        self._fd = -1

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path, feed: Callable[[memoryview], object]) -> AsyncIterator[Self]:
        """Open the file; whoever is cancelled between two blocks leaves nothing behind.

        Raises:
            OSError: it cannot be opened.

        """
        thread = ThreadPoolExecutor(1, "reread")
        reading = cls(path, feed, thread)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(thread, reading._open)
            yield reading
        finally:
            # Behind the block that may be under way: the thread keeps the order.
            closing = thread.submit(reading._close)
            thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    async def step(self) -> int:
        """Hand over the next block, and give how many bytes were read for it; -1 at the end.

        Raises:
            OSError: they cannot be read.

        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._step)

    def _open(self) -> None:
        try:
            self._fd = files.open_regular(self._path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = files.open_regular(self._path, os.O_RDONLY)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _step(self) -> int:
        size = os.fstat(self._fd).st_size
        wanted = min(BLOCK_SIZE, size - self.length)
        if wanted <= 0:
            return -1
        data, _ = next(files.data_runs(self._fd, size, self.length), (size, size))
        if data >= self.length + wanted:
            self._feed(self._zeros[:wanted])
            self.length += wanted
            return 0
        read = self._fill(wanted)
        self._feed(self._block[:read])
        self.length += read
        self.read += read
        # A file that became shorter meanwhile has no more to give.
        return read or -1

    def _fill(self, wanted: int) -> int:
        """Read the block at ``length``; less than wanted only at the end of the file."""
        done = 0
        while done < wanted:
            try:
                read = os.preadv(self._fd, [self._block[done:]], self.length + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct():
                    raise
                # Some file systems take direct I/O only at other multiples than we read at.
                self._go_through_cache()
                continue
            if not read:
                break
            done += read
        return min(done, wanted)

    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_DIRECT)

    def _go_through_cache(self) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
