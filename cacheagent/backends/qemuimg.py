"""Every qemu-img command line: always with a format, always under limits, always shut in.

The functions named ``*_arguments`` give what stands behind ``qemu-img``. A file is an absolute
path, which QEMU cannot take for a protocol (``json:`` and ``nbd:`` names, CVE-2024-4467), and its
format is always stated, so that no header decides as what it is opened (CVE-2026-24708).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cacheagent.errors import QemuImgError
from cacheagent.model import DiskFormat
from cacheagent.process import Limits
from cacheagent.sandbox import Files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cacheagent.process import Completed
    from cacheagent.sandbox import Sandbox

_CHECKED_WITH_FINDINGS = (0, 2, 3)
_CANNOT_BE_CHECKED = 63
_PERCENT = re.compile(rb"\((\d{1,3}(?:\.\d+)?)/100%\)")
_VERSION = re.compile(r"version (\S+)")
_LONGEST_PERCENT = len(b"(100.00/100%)")
# Its complaints name files: a word alone may be that of a folder.
_NOT_THIS_WAY = re.compile(
    r"(support|working) O_DIRECT|Invalid argument|(native|linux) AIO|aio=native"
)
# Where direct I/O is what fails to open a file, QEMU says so in other words (since 5.2).
_NOT_THIS_IMAGE = re.compile(r"^qemu-img: Could not open .*: Invalid argument$", re.MULTILINE)
_NOT_READ = re.compile(r"^qemu-img: error while reading .*: Invalid argument$", re.MULTILINE)

_CONSEQUENCE = "qemu-img: Error when deleting file "

# A coroutine reads 2 MiB at a time, but of compressed clusters only one, of 64 KiB: so many more
# keep a core at work. qemu-img takes no more than 16.
_COROUTINES_A_THREAD: Final = 8
_MOST_COROUTINES: Final = 16

# No conversion is slower than this on any machine that runs guests, however it was compressed:
# inflating zlib yields some hundred MiB for each second of CPU.
_SLOWEST_CONVERSION: Final = 8 << 20

# What a file can be longer than its disk: QEMU rounds up to sectors and blocks.
_RAW_SLACK = 64 << 10
# The tables of a full qcow2 with the smallest clusters: 8 bytes of L2 and up to 8 of refcount
# for each 512, plus the header and the first clusters of each table.
_QCOW2_OVERHEAD = 32
_QCOW2_SLACK = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuImgSettings:
    """How to run qemu-img.

    ``cpu_time_limit`` is in seconds and holds for everything but a conversion, which gets more
    the larger it is; ``memory_limit`` is bytes of address space. ``convert_threads`` are the
    coroutines of a conversion; one of compressed clusters has more.
    """

    binary: str
    cpu_time_limit: float
    memory_limit: int
    convert_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a conversion reads and writes: the cache mode of both files, and calls for the target.

    With ``native`` the kernel is told of many writes at once (io_submit(2)), which it takes past
    the page cache only. Threads of QEMU would all spin on the lock of the one file: a write that
    fills a hole takes that alone.
    """

    cache: str
    native: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuImgInfo:
    """What ``qemu-img info`` says of a file, without having opened what it names.

    Sizes are bytes. ``backing_file`` is the name as it stands in the file.
    """

    virtual_size: int
    actual_size: int
    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    encrypted: bool
    corrupt: bool


class QemuImg:
    """Runs qemu-img; one that is cancelled has been killed and has ended.

    Each call raises QemuImgError where qemu-img fails or a limit stops it, HostUnavailableError
    where there is none or somebody killed it, and ValueError for a path that is not absolute.
    """

    def __init__(self, settings: QemuImgSettings, sandbox: Sandbox) -> None:
        self._settings = settings
        self._sandbox = sandbox

    @property
    def sandbox(self) -> Sandbox:
        """What it is shut in by."""
        return self._sandbox

    async def version(self) -> str:
        """Ask which version of QEMU it belongs to."""
        words = (await self._run(["--version"], Files(), file_size=0)).decode(errors="replace")
        match = _VERSION.search(words)
        return match[1] if match else "unknown"

    async def info(self, path: Path, image_format: str) -> QemuImgInfo:
        """Read sizes and references from the header; also while a guest has the file open."""
        words, files = info_arguments(path, image_format), Files(read=(path,))
        return parse_info(await self._run(words, files, file_size=0))

    async def check(self, path: Path, image_format: str) -> bool:
        """Check the tables of an image, without repair; tell whether any cluster is compressed.

        Formats that have none pass, and tell no. Clusters that are only leaked are no finding. An
        overlay cannot be checked: its base is not shown to qemu-img. Raises: QemuImgError with
        what was found.
        """
        words, files = check_arguments(path, image_format), Files(read=(path,))
        completed = await self._complete(words, files, file_size=0)
        if completed.returncode == _CANNOT_BE_CHECKED:
            return False
        if completed.returncode not in _CHECKED_WITH_FINDINGS:
            raise _error("check", completed)
        found = _json("check", completed.stdout)
        errors, corruptions = (int(found.get(k, 0)) for k in ("check-errors", "corruptions"))
        if errors or corruptions:
            raise QemuImgError(f"qemu-img check: {corruptions} corruptions, {errors} errors")
        return bool(found.get("compressed-clusters", 0))

    async def convert(
        self,
        source: Path,
        source_format: str,
        target: Path,
        target_format: DiskFormat,
        *,
        max_bytes: int,
        on_progress: Callable[[float], object],
        compressed: bool = False,
    ) -> None:
        """Write ``source`` anew as ``target``, zeros as holes, past the page cache if possible.

        ``max_bytes`` bounds the disk: a larger one makes it fail before it has written more, and
        a raw target is so long. ``compressed`` sources are read by more coroutines.
        ``on_progress`` gets the fraction done, from 0 to 1. A target that was begun stays where
        this fails. Raises: QemuImgError with ``no_space`` where the file system is full.
        """
        coroutines = self._coroutines(compressed=compressed)
        words = partial(convert_arguments, source, source_format, target, target_format)
        run = partial(
            self._sandbox.run,
            files=Files(read=(source,), write=(target,)),
            limits=self._limits(longest_file(max_bytes, target_format), converted=max_bytes),
            on_stdout=ProgressReader(on_progress).feed,
        )
        way, *others = ways(target_format)
        if way.native:
            await self.create(target, target_format, size=max_bytes, options="")
        completed = await run([self._settings.binary, *words(coroutines=coroutines, way=way)])
        while left := _left(others, completed):
            way, *others = left
            completed = await run([self._settings.binary, *words(coroutines=coroutines, way=way)])
        if completed.returncode != 0:
            raise _error("convert", completed)

    async def create_overlay(
        self, target: Path, *, base: Path, base_format: DiskFormat, size: int, options: str
    ) -> None:
        """Make an empty qcow2 of ``size`` bytes on ``base``; ``options`` as for ``-o``."""
        words = create_overlay_arguments(
            target, base=base, base_format=base_format, size=size, options=options
        )
        await self._run(words, Files(read=(base,), write=(target,)))

    async def create(
        self, target: Path, disk_format: DiskFormat, *, size: int, options: str
    ) -> None:
        """Make an empty disk of ``size`` bytes; ``options`` as for ``-o``."""
        words = create_arguments(target, disk_format, size=size, options=options)
        await self._run(words, Files(write=(target,)))

    async def resize(self, path: Path, image_format: DiskFormat, size: int) -> None:
        """Grow a disk that no guest has open to ``size`` bytes; it is never made smaller."""
        await self._run(resize_arguments(path, image_format, size), Files(write=(path,)))

    async def _run(
        self, arguments: Sequence[str], files: Files, *, file_size: int | None = None
    ) -> bytes:
        completed = await self._complete(arguments, files, file_size=file_size)
        if completed.returncode != 0:
            raise _error(arguments[0], completed)
        return completed.stdout

    async def _complete(
        self, arguments: Sequence[str], files: Files, *, file_size: int | None
    ) -> Completed:
        words = [self._settings.binary, *arguments]
        return await self._sandbox.run(words, limits=self._limits(file_size), files=files)

    def _coroutines(self, *, compressed: bool) -> int:
        threads = self._settings.convert_threads
        return min(_COROUTINES_A_THREAD * threads, _MOST_COROUTINES) if compressed else threads

    def _limits(self, file_size: int | None, *, converted: int = 0) -> Limits:
        return Limits(
            cpu_seconds=self._settings.cpu_time_limit + converted / _SLOWEST_CONVERSION,
            memory=self._settings.memory_limit,
            file_size=file_size,
        )


class ProgressReader:
    """Finds ``(12.34/100%)`` in the output of ``qemu-img convert -p``, wherever it is cut.

    Hands on fractions from 0 to 1, only those that are larger than all before.
    """

    def __init__(self, on_progress: Callable[[float], object]) -> None:
        self._on_progress = on_progress
        self._rest = b""
        self._furthest = -1.0

    def feed(self, data: bytes) -> None:
        """Take the next piece of the output."""
        text = self._rest + data
        position = 0
        for match in _PERCENT.finditer(text):
            position = match.end()
            fraction = min(float(match[1]) / 100, 1.0)
            if fraction > self._furthest:
                self._furthest = fraction
                self._on_progress(fraction)
        self._rest = text[position:][-_LONGEST_PERCENT:]


def info_arguments(path: Path, image_format: str) -> list[str]:
    """Give the words of ``qemu-img info``; it takes no lock, so a guest may run meanwhile."""
    return ["info", "--force-share", "--output=json", "-f", image_format, _name(path)]


def check_arguments(path: Path, image_format: str) -> list[str]:
    """Give the words of ``qemu-img check``, which repairs nothing."""
    return ["check", "--output=json", "-f", image_format, _name(path)]


def ways(target_format: DiskFormat) -> tuple[Way, ...]:
    """Give the ways to convert, best first; not every host and file system has all of them."""
    both = (Way(cache="none"), Way(cache="writeback"))
    return (Way(cache="none", native=True), *both) if target_format is DiskFormat.RAW else both


def convert_arguments(
    source: Path,
    source_format: str,
    target: Path,
    target_format: DiskFormat,
    *,
    coroutines: int,
    way: Way,
) -> list[str]:
    """Give the words of ``qemu-img convert``.

    It may write out of order: the target is of no use before it is whole. A ``native`` one writes
    into a raw target that is there: a hole as long as the disk.
    """
    words = ["convert", "-p", "-W", "-m", str(coroutines), "-t", way.cache, "-T", way.cache]
    words += ["-f", source_format]
    if not way.native:
        return [*words, "-O", target_format.value, _name(source), _name(target)]
    # A comma ends an option, unless there are two.
    name = _name(target).replace(",", ",,")
    options = f"driver={target_format.value},file.driver=file,file.aio=native,file.filename={name}"
    words += ["-n", "--target-is-zero", "--target-image-opts"]
    return [*words, _name(source), options]


def create_overlay_arguments(
    target: Path, *, base: Path, base_format: DiskFormat, size: int, options: str
) -> list[str]:
    """Give the words of ``qemu-img create`` for a qcow2 on a base."""
    words = ["create", "-q", "-f", "qcow2", "-b", _name(base), "-F", base_format.value]
    return [*words, *_options(options), _name(target), str(size)]


def create_arguments(
    target: Path, disk_format: DiskFormat, *, size: int, options: str
) -> list[str]:
    """Give the words of ``qemu-img create`` for a blank disk."""
    return ["create", "-q", "-f", disk_format.value, *_options(options), _name(target), str(size)]


def resize_arguments(path: Path, image_format: DiskFormat, size: int) -> list[str]:
    """Give the words of ``qemu-img resize``; without ``--shrink``, so it refuses to cut."""
    return ["resize", "-q", "-f", image_format.value, _name(path), str(size)]


def longest_file(max_bytes: int, target_format: DiskFormat) -> int:
    """Give the length that the file of a disk of ``max_bytes`` cannot exceed."""
    if target_format is DiskFormat.RAW:
        return max_bytes + _RAW_SLACK
    return max_bytes + max_bytes // _QCOW2_OVERHEAD + _QCOW2_SLACK


def parse_info(output: bytes) -> QemuImgInfo:
    """Read the JSON of ``qemu-img info``. Raises: QemuImgError where it is not what it was."""
    found = _json("info", output)
    specific = found.get("format-specific")
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    try:
        return QemuImgInfo(
            virtual_size=int(found["virtual-size"]),
            actual_size=int(found.get("actual-size", 0)),
            backing_file=found.get("backing-filename"),
            backing_format=found.get("backing-filename-format"),
            data_file=data.get("data-file"),
            encrypted=bool(found.get("encrypted", False)),
            corrupt=bool(data.get("corrupt", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QemuImgError("qemu-img info: its answer cannot be read") from error


def _json(command: str, output: bytes) -> dict[str, Any]:
    try:
        value = json.loads(output)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise QemuImgError(f"qemu-img {command}: its answer cannot be read")
    return value


def _options(options: str) -> list[str]:
    return ["-o", options] if options else []


def _name(path: Path) -> str:
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    return str(path)


def _left(others: Sequence[Way], completed: Completed) -> Sequence[Way]:
    """Give the ways to convert that are left, unless it failed by what it reads, not by how."""
    if completed.returncode == 0 or completed.no_space or completed.at_limit:
        return ()
    if _NOT_THIS_IMAGE.search(completed.stderr):
        return ()
    if _NOT_READ.search(completed.stderr):
        # The image may be broken. Out of the page cache, the last way, that is sure; until then
        # the ways differ in how they write.
        return others[-1:]
    return others if _NOT_THIS_WAY.search(completed.stderr) else ()


def _error(command: str, completed: Completed) -> QemuImgError:
    reasons = replace(completed, stderr=_reasons(completed.stderr))
    words = reasons.last_words.removeprefix("qemu-img: ")
    return QemuImgError(
        f"qemu-img {command}: {words}", no_space=completed.no_space, at_limit=completed.at_limit
    )


def _reasons(complaints: str) -> str:
    """Leave out what is only a consequence, unless there is nothing else.

    qemu-img tries to remove the file that it could not make, and the sandbox lets it remove none.
    """
    lines = [line for line in complaints.splitlines() if line.strip()]
    return "\n".join([each for each in lines if not each.startswith(_CONSEQUENCE)] or lines)
