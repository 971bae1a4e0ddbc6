"""A real file system, small enough to be filled to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.agent import Agent
from tests.needs import require, require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

MAKE = {
    "ext4": ("mke2fs", "-q", "-t", "ext4", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
}
"""How each is made; of ext4 nothing is kept back for root."""


@contextlib.contextmanager
def mounted(kind: str, size: int, folder: Path) -> Iterator[Path]:
    """Make a file system of ``size`` bytes in a file of the folder, mounted on ``state``."""
    require_programs(MAKE[kind][0], "mount", "umount")
    require(os.geteuid() == 0, "only root may mount a file system")
    image, where = folder / "filesystem", folder / "state"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*MAKE[kind], str(image)], check=True)
    where.mkdir()
    made = subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=False)
    require(made.returncode == 0, "this machine mounts no file by a loop device")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextlib.asynccontextmanager
async def agent_on_filesystem(
    kind: str, size: int, settings: Mapping[str, Mapping[str, object]]
) -> AsyncIterator[Agent]:
    """Give an agent that is started, whose whole state lies on a file system of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="ca-") as name,
        mounted(kind, size, Path(name)),
    ):
        agent = Agent(Path(name), settings)
        try:
            await agent.start()
            yield agent
        finally:
            await agent.close()


class Filler:
    """A file of somebody else that takes whatever the file system has left."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "somebody's"

    def fill(self) -> None:
        """Take all that is left, to the last block."""
        with self._path.open("ab") as file:
            piece = 1 << 26
            while piece:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece >>= 1
                os.fsync(file.fileno())

    def clear(self) -> None:
        """Give it all back: now, and not when the file system comes to it."""
        os.truncate(self._path, 0)
        self._path.unlink()


class Gauge:
    """Measures without a pause, beside the test, and keeps the extremes."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._over = threading.Event()
        self.most_cached = 0
        self.most_used = 0
        self.least_free = 1 << 62

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Gauge]:
        """Measure for as long as the context lasts."""
        watching = asyncio.create_task(asyncio.to_thread(self._watch))
        try:
            yield self
        finally:
            self._over.set()
            await watching

    def _watch(self) -> None:
        while not self._over.is_set():
            self.measure()

    def measure(self) -> None:
        """Look once."""
        cached = sum(map(_allocated, self._files()))
        found = os.statvfs(self._state)
        self.most_cached = max(self.most_cached, cached)
        self.most_used = max(self.most_used, (found.f_blocks - found.f_bavail) * found.f_frsize)
        self.least_free = min(self.least_free, found.f_bavail * found.f_frsize)

    def _files(self) -> Iterator[Path]:
        # What moves from one to the other meanwhile may be missed, and never counts twice.
        yield from (self._state / "bases").iterdir()
        yield from (self._state / "ingest").iterdir()


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0
