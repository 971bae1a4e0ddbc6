"""A small file system that is really full when it is full, where the machine lets us have one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import files
from cacheagent.model import SpaceUsage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096


class FileSystem:
    """A file system of ``size`` bytes, whose room a file of somebody else can take."""

    def __init__(self, folder: Path, size: int, *, real: bool) -> None:
        self.folder = folder
        self.size = size
        self.real = real
        self._filler = folder / "of-somebody-else"

    @property
    def free(self) -> int:
        """Bytes that can be written still."""
        if self.real:
            return files.usage(self.folder).available
        return max(0, self.size - _taken(self.folder))

    @property
    def filled(self) -> bool:
        """Whether somebody else takes room."""
        return self._filler.exists()

    def fill(self, left: int) -> None:
        """Take all but ``left`` bytes; where less is free already, nothing."""
        self.clear()
        size = (self.free - left) // PAGE * PAGE
        if size > 0:
            with self._filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    def clear(self) -> None:
        """Give back what somebody else has taken."""
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[FileSystem]:
    """Give a file system of ``size`` bytes on ``folder``.

    Without the right to mount one, the agent is only told that there is so much room: then it
    refuses what does not fit, and no write of it ever fails.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, check=False).returncode
    system = FileSystem(folder, size, real=mounted)
    if mounted:
        try:
            yield system
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        return
    with pytest.MonkeyPatch.context() as patch:
        usage = SpaceUsage(total=size, available=0)
        patch.setattr(files, "usage", lambda _: _with(usage, system.free))
        yield system


def _with(usage: SpaceUsage, available: int) -> SpaceUsage:
    return SpaceUsage(total=usage.total, available=available)


def _taken(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # The agent works on its files meanwhile.
        with contextlib.suppress(FileNotFoundError):
            total += files.allocated(path)
    return total
