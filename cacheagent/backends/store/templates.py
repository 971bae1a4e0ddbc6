"""The content of templates, kept in memory: a disk begins as the same few blocks each time."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from cacheagent.backends.store import files

MOST_KEPT = 1024
"""Templates that are kept in memory; the one that was used longest ago goes first."""

MOST_READ = 1 << 20
"""Bytes of data up to which a template is kept: one that qemu-img makes by default has 192 KiB,
nearly all of them zeros."""

BLOCK = 4096
"""Zeros are left out in this unit, which is the block of most file systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """An empty overlay: how long it is, and its blocks that are not zero, by their offset.

    ``blocks`` is None where there are too many to keep: the file itself is copied then. A file of
    another ``identity`` is not the one that was read.
    """

    path: Path
    size: int
    blocks: tuple[tuple[int, bytes], ...] | None
    identity: files.Identity


class Templates:
    """Those that were used lately. Any thread may use it."""

    def __init__(self) -> None:
        self._kept: dict[Path, Template] = {}
        self._using = threading.Lock()

    def get(self, path: Path) -> Template | None:
        """Give the template, if it is kept."""
        with self._using:
            if (found := self._kept.pop(path, None)) is not None:
                self._kept[path] = found
            return found

    def forget(self, path: Path) -> None:
        """Forget the template: its file is not the one that was read."""
        with self._using:
            self._kept.pop(path, None)

    def keep(self, template: Template) -> None:
        """Keep a template."""
        with self._using:
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[template.path] = template


def read_template(path: Path) -> Template | None:
    """Read a template; None where no regular file has its name. It blocks."""
    if (identity := files.identity(path)) is None:
        return None
    with files.open_fd(path, os.O_RDONLY) as fd:
        return Template(
            path=path, size=identity.size, blocks=_blocks(fd, identity.size), identity=identity
        )


def _blocks(fd: int, size: int) -> tuple[tuple[int, bytes], ...] | None:
    runs = list(files.data_runs(fd, size))
    if sum(end - start for start, end in runs) > MOST_READ:
        return None
    return tuple(
        (offset, block)
        for start, end in runs
        for offset in range(start, end, BLOCK)
        if (block := os.pread(fd, min(BLOCK, end - offset), offset).rstrip(b"\0"))
    )
