"""File systems on blank disks: mke2fs(8), mkfs.xfs(8), mkfs.fat(8), mkswap(8)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cacheagent.errors import InvalidRequestError, MkfsError, ProgramMissingError
from cacheagent.model import FileSystem
from cacheagent.process import Limits, run_limited

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CPU_SECONDS = 120
_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """A tool, the option that it takes a label by, and what a label may be."""

    command: tuple[str, ...]
    label_option: str
    label_pattern: str


# A label may not begin like an option. The lengths are those of the fields on disk; of swap's 16
# bytes the last stays a NUL, and FAT forbids the dot.
_MAKERS: Final[Mapping[FileSystem, _Maker]] = {
    FileSystem.EXT4: _Maker(
        command=("mke2fs", "-q", "-F", "-t", "ext4"),
        label_option="-L",
        label_pattern=r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,15}",
    ),
    FileSystem.XFS: _Maker(
        command=("mkfs.xfs", "-q", "-f"),
        label_option="-L",
        label_pattern=r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,11}",
    ),
    FileSystem.VFAT: _Maker(
        command=("mkfs.vfat",),
        label_option="-n",
        label_pattern=r"[A-Za-z0-9_][A-Za-z0-9_-]{0,10}",
    ),
    FileSystem.SWAP: _Maker(
        command=("mkswap",),
        label_option="-L",
        label_pattern=r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,14}",
    ),
}


def check_label(filesystem: FileSystem, label: str) -> None:
    """Refuse a label that the file system cannot bear. Raises: InvalidRequestError."""
    pattern = _MAKERS[filesystem].label_pattern
    if not re.fullmatch(pattern, label):
        raise InvalidRequestError([("label", f"for {filesystem}, it has to match {pattern}")])


def mkfs_arguments(path: Path, filesystem: FileSystem, label: str | None) -> list[str]:
    """Give the command line. Raises: InvalidRequestError for a label that cannot be."""
    if not path.is_absolute():
        raise ValueError(f"{path} is not an absolute path")
    maker = _MAKERS[filesystem]
    if label is None:
        return [*maker.command, str(path)]
    check_label(filesystem, label)
    return [*maker.command, maker.label_option, label, str(path)]


async def make_filesystem(path: Path, filesystem: FileSystem, label: str | None) -> None:
    """Make a file system in the raw file at ``path``, as large as the file is.

    Raises: InvalidRequestError where the label or the size does not suit the file system, or
    this host has no tool for it; MkfsError where the tool was killed or found the disk full.
    """
    argv = mkfs_arguments(path, filesystem, label)
    length = (await asyncio.to_thread(path.stat)).st_size
    limits = Limits(cpu_seconds=_CPU_SECONDS, memory=_MEMORY, file_size=length)
    try:
        completed = await run_limited(argv, limits=limits)
    except ProgramMissingError as error:
        problem = f"this host cannot make {filesystem}: {error}"
        raise InvalidRequestError([("filesystem", problem)]) from error
    if completed.returncode == 0:
        return
    words = f"{argv[0]}: {completed.last_words}"
    if completed.returncode < 0 or completed.no_space:
        raise MkfsError(words, no_space=completed.no_space)
    raise InvalidRequestError([("filesystem", words)])
