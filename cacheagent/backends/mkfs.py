"""File systems on blank disks: mke2fs(8), mkfs.xfs(8), mkfs.fat(8), mkswap(8)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cacheagent.errors import InvalidRequestError, MkfsError, ProgramMissingError
from cacheagent.model import FileSystem, check_label
from cacheagent.process import Limits
from cacheagent.sandbox import Files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheagent.sandbox import Sandbox

_CPU_SECONDS = 120
_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """A tool, and the option that it takes a label by."""

    command: tuple[str, ...]
    label_option: str


_MAKERS: Final[Mapping[FileSystem, _Maker]] = {
    FileSystem.EXT4: _Maker(command=("mke2fs", "-q", "-F", "-t", "ext4"), label_option="-L"),
    FileSystem.XFS: _Maker(command=("mkfs.xfs", "-q", "-f"), label_option="-L"),
    FileSystem.VFAT: _Maker(command=("mkfs.vfat",), label_option="-n"),
    FileSystem.SWAP: _Maker(command=("mkswap",), label_option="-L"),
}


def mkfs_arguments(path: Path, filesystem: FileSystem, label: str | None) -> list[str]:
    """Give the command line. Raises: InvalidRequestError for a label that cannot be."""
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    maker = _MAKERS[filesystem]
    if label is None:
        return [*maker.command, str(path)]
    try:
        check_label(filesystem, label)
    except ValueError as error:
        raise InvalidRequestError([("label", str(error))]) from error
    return [*maker.command, maker.label_option, label, str(path)]


async def make_filesystem(
    path: Path, filesystem: FileSystem, label: str | None, *, sandbox: Sandbox
) -> None:
    """Make a file system in the raw file at ``path``, as large as the file is.

    Raises: InvalidRequestError where the label or the size does not suit the file system, or
    this host has no tool for it; MkfsError where a limit stopped it or the disk was full;
    ProgramKilledError where somebody killed it.
    """
    argv = mkfs_arguments(path, filesystem, label)
    length = (await asyncio.to_thread(path.stat)).st_size
    limits = Limits(cpu_seconds=_CPU_SECONDS, memory=_MEMORY, file_size=length)
    try:
        completed = await sandbox.run(argv, limits=limits, files=Files(write=(path,)))
    except ProgramMissingError as error:
        problem = f"this host cannot make {filesystem}: {error}"
        raise InvalidRequestError([("filesystem", problem)]) from error
    if completed.returncode == 0:
        return
    # mkfs.xfs says what is wrong, and then all that it can do.
    reason = replace(completed, stderr=completed.stderr.partition("\nUsage:")[0])
    words = f"{argv[0]}: {reason.last_words}"
    if completed.returncode < 0 or completed.no_space:
        raise MkfsError(words, no_space=completed.no_space)
    raise InvalidRequestError([("filesystem", words)])
