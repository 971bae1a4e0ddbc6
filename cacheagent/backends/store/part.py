"""Where the bytes of an ingest lie: a file at its full length, and which parts of it are there.

The file is written in whole blocks through direct I/O where the file system can, so that the
pages of the guests stay in the page cache; runs of zeros are left out and stay holes. The record
beside it says what has arrived. It is not synced: whoever resumes reads the bytes again anyway,
since a digest cannot be stored half way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import mmap
import os
from typing import TYPE_CHECKING, Self, TypeVar

import aiofiles
import structlog

from cacheagent.backends.store import files
from cacheagent.policy.layout import unfinished
from cacheagent.sync.modest import modest_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from cacheagent.model import GlanceImage

T = TypeVar("T")

BLOCK_SIZE = 2 << 20
"""Bytes of a full block; small enough to pipeline, large enough to forget the hops."""

HOLE_SIZE = 64 << 10
"""Zero runs are looked for in steps of this many bytes."""

ALIGNMENT = 4096
"""What direct I/O asks of offsets, lengths and memory on the devices of today."""

SLICE = 512 << 10
"""Bytes that are written between two looks at who goes first: an fsync waits for what is."""

PART_MODE = RECORD_MODE = 0o600
_log = structlog.get_logger(__name__)
_ZEROS = bytes(HOLE_SIZE)


class Block:
    """A page-aligned buffer that is filled from the left; ``view()`` is what it holds."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, BLOCK_SIZE)
        self._view = memoryview(self._memory)
        self.length = 0

    def rest(self) -> memoryview:
        """Show what can be filled yet; whoever fills some of it adds to ``length``."""
        return self._view[self.length :]

    @property
    def is_full(self) -> bool:
        """Whether there is no rest."""
        return self.length == BLOCK_SIZE

    def view(self) -> memoryview:
        """Show what has been filled."""
        return self._view[: self.length]

    def padded(self) -> memoryview:
        """Show the same, with zeros up to the alignment that direct I/O asks for."""
        end = -(-self.length // ALIGNMENT) * ALIGNMENT
        self._view[self.length : end] = bytes(end - self.length)
        return self._view[:end]


def data_runs(data: memoryview) -> list[tuple[int, int]]:
    """Give start and end of the runs of ``data`` that are not zeros, in steps of ``HOLE_SIZE``."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), HOLE_SIZE):
        piece = data[start : start + HOLE_SIZE]
        # Nearly always the first page tells; copying all of them would keep the loop waiting.
        if _is_zero(piece[:ALIGNMENT]) and _is_zero(piece):
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + len(piece))
        else:
            runs.append((start, start + len(piece)))
    return runs


def _is_zero(data: memoryview) -> bool:
    return data.tobytes() == _ZEROS[: len(data)]


class Part:
    """The file of one ingest; ``present`` bytes from its beginning have arrived.

    Made by ``Part.open``. A thread of its own does everything to the file, in order.
    """

    def __init__(
        self,
        path: Path,
        record: Path,
        image: GlanceImage,
        thread: Executor,
        give_way: Callable[[], bool],
    ) -> None:
        self.path = path
        self.size = image.size or 0
        self.present = 0
        self._submitted = 0
        self._record = record
        self._image = image
        self._thread = thread
        self._give_way = give_way
        self._fd = -1

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        path: Path,
        record: Path,
        image: GlanceImage,
        give_way: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[Self]:
        """Open the part of ``image``, with what an earlier ingest of the same content left.

        ``give_way`` returns when something may be written, and tells whether it is to be asked
        again soon: ``Precedence.give_way``.

        Raises:
            InsufficientSpaceError: the file system is full.

        """
        thread = modest_thread("part")
        part = cls(path, record, image, thread, give_way)
        try:
            recorded = await recorded_bytes(record, image)
            await part._run(part._open_file, recorded)
            yield part
        finally:
            # Behind whatever is still under way, were it the opening: the thread keeps the order.
            closing = thread.submit(part._close)
            thread.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    def _run(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _open_file(self, recorded: int) -> None:
        flags = os.O_RDWR | os.O_CREAT
        with files.foreign_errors(), files.space_errors(self.path.parent, self.size):
            # A crash while it was published has left it without the right to be written.
            with (
                contextlib.suppress(FileNotFoundError),
                files.open_fd(self.path, os.O_RDONLY) as fd,
            ):
                os.fchmod(fd, PART_MODE)
            try:
                self._fd = files.open_regular(self.path, flags | os.O_DIRECT, PART_MODE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._fd = files.open_regular(self.path, flags, PART_MODE)
            self._cut(recorded if os.fstat(self._fd).st_size == self.size else 0)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _cut(self, length: int) -> None:
        """Keep the first ``length`` bytes; behind them nothing, so that zeros can be left out."""
        os.ftruncate(self._fd, length)
        os.ftruncate(self._fd, self.size)
        self.present = self._submitted = length

    def write(self, block: Block) -> asyncio.Future[None]:
        """Begin to write the block behind all that was given before; the block stays untouched.

        The future raises ``InsufficientSpaceError`` where the file system is full.
        """
        offset = self._submitted
        self._submitted += block.length
        return self._run(self._write, offset, block)

    def _write(self, offset: int, block: Block) -> None:
        data = block.padded()
        with files.space_errors(self.path.parent, self.size):
            for start, end in data_runs(data):
                done = start
                while done < end:
                    upto = min(done + SLICE, end) if self._give_way() else end
                    _write_all(self._fd, data[done:upto], offset + done)
                    done = upto
            if len(data) != block.length:
                os.ftruncate(self._fd, self.size)
        # After a write that failed, what follows it is no longer a beginning.
        if self.present == offset:
            self.present += block.length

    async def save_record(self) -> None:
        """Write down what is present, so that another ingest can go on from there.

        Where that fails, say for want of room, the record stays as it was: it claims less.
        """
        text = json.dumps({**_identity(self._image), "present": self.present})
        try:
            await self._run(self._write_record, text)
        except OSError as error:
            _log.warning("the record of a download is not kept", why=str(error))

    def _write_record(self, text: str) -> None:
        making = unfinished(self._record)
        making.unlink(missing_ok=True)
        with files.open_fd(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, RECORD_MODE) as fd:
            files.write_all(fd, text.encode(), 0)
        making.replace(self._record)

    async def read_present(self, feed: Callable[[memoryview], Awaitable[None]]) -> None:
        """Hand the bytes that are present to ``feed``, block by block.

        Raises:
            OSError: the file is shorter than its record says.

        """
        async with aiofiles.open(self.path, "rb", buffering=0) as file:
            left = self.present
            while left:
                data = await file.read(min(left, BLOCK_SIZE))
                if not data:
                    raise OSError(errno.EIO, "the part is shorter than its record says")
                await feed(memoryview(data))
                left -= len(data)

    async def restart(self) -> None:
        """Forget every byte that has arrived."""
        await self._run(self._cut, 0)


def _identity(image: GlanceImage) -> dict[str, object]:
    """Say which content the bytes belong to: another digest or size makes them useless."""
    return {
        "size": image.size,
        "os_hash_algo": image.os_hash_algo,
        "os_hash_value": image.os_hash_value,
        "checksum": image.checksum,
    }


async def recorded_bytes(record: Path, image: GlanceImage) -> int:
    """Tell how many bytes of this very content are there; a record that is no use counts 0."""
    try:
        async with aiofiles.open(record, encoding="utf-8", opener=files.open_regular) as file:
            known = json.loads(await file.read())
        present = known.pop("present")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return 0
    same = known == _identity(image) and isinstance(present, int)
    return present // BLOCK_SIZE * BLOCK_SIZE if same and 0 < present <= (image.size or 0) else 0


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
