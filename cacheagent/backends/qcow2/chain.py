"""From an overlay to the bases behind it, over as many files as lie between.

Names are followed as QEMU would: a relative one from the folder of the file that bears it, every
link resolved. What cannot be followed hides all bases from us, and is a doubt.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.backends.qcow2.names import FileNames, file_names, mentioned_bases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.backends.qcow2.heads import Head, Heads

_NO_FILE = {"", ".", ".."}
_NOBODY_CAN = {errno.ELOOP, errno.ENAMETOOLONG}
"""Errors that QEMU would get too, at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something that may hide an overlay of any base; ``why`` is the end of a sentence."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What lies behind an overlay: bases, by the names of their files, and what hid some."""

    bases: frozenset[str]
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What one file leads to at once: bases by name, and other files by canonical path."""

    bases: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    doubt: Doubt | None = None


_NOWHERE = _Step()


class BasesFolder:
    """Tells which paths mean a file in the folder of the bases, whatever links lead there."""

    def __init__(self, bases: Path) -> None:
        self.path = str(bases)
        # Looked up once, so for one scan: links may change.
        self._real = os.path.realpath(bases)
        self._folders: dict[str, str] = {}

    def name_of(self, path: str) -> str | None:
        """Give the name of the base's file that an absolute path means, None if it means none."""
        canonical = self.canonical(path)
        # A link in our folder is ours; a link elsewhere may lead to a file of ours.
        return self._child(canonical) or self._child(os.path.realpath(canonical))

    def _child(self, path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        return name if folder == self._real else None

    def canonical(self, path: str) -> str:
        """Resolve the folder of a path, not its last part: two files of one path are the same."""
        folder, _, name = path.rpartition("/")
        if name in _NO_FILE:
            return os.path.realpath(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder or "/")
        return f"{real.rstrip('/')}/{name}"


class Chains:
    """Follows the chains of one scan; each file between is looked at once."""

    def __init__(self, bases: BasesFolder, heads: Heads) -> None:
        self._bases = bases
        self._heads = heads
        self._steps: dict[str, _Step] = {}

    def behind(self, path: str, head: Head) -> Behind:
        """Follow the overlay at ``path``, an absolute path, to its end; circles are survived."""
        bases: set[str] = set()
        doubts: list[Doubt] = []
        seen: set[str] = set()
        todo = [self._step(path, head)]
        while todo:
            step = todo.pop()
            bases |= step.bases
            if step.doubt is not None:
                doubts.append(step.doubt)
            fresh = [file for file in step.files if file not in seen]
            seen.update(fresh)
            todo += [self._look(file) for file in fresh]
        return Behind(bases=frozenset(bases), doubts=tuple(doubts))

    def _look(self, file: str) -> _Step:
        if file not in self._steps:
            self._steps[file] = self._looked(file)
        return self._steps[file]

    def _looked(self, file: str) -> _Step:
        try:
            found = os.stat(file)  # noqa: PTH116 a Path for each file costs more than the call
            # To open another device may be a deed.
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
                return _NOWHERE
            return self._step(file, self._heads.of(file, found))
        except (FileNotFoundError, NotADirectoryError):
            return _missing(file)
        except OSError as error:
            if error.errno in _NOBODY_CAN:
                return _NOWHERE
            return _doubt(file, f"is a backing file and cannot be read: {error.strerror}")

    def _step(self, path: str, head: Head) -> _Step:
        if head.backing is None:
            return _Step(bases=head.mentioned) if head.mentioned else _NOWHERE
        names = file_names(head.backing)
        # Of a name with options, also what nobody can read: somebody may mend it.
        texts = (*names.loose, head.backing) if names.options else names.loose
        bases = {base for text in texts for base in mentioned_bases(text)}
        files = []
        for candidate in _candidates(path, names):
            base = self._bases.name_of(candidate)
            if base is None:
                files.append(self._bases.canonical(candidate))
            else:
                bases.add(base)
        return _Step(bases=frozenset(bases), files=tuple(files))


def _candidates(path: str, names: FileNames) -> Iterable[str]:
    """Give every path that the names may mean in the header of the file at ``path``."""
    folders = [os.path.dirname(path)]  # noqa: PTH120 as above: no Path for each file
    if os.path.islink(path):  # noqa: PTH114 as above
        # Whoever opens the overlay by its real name begins in another folder.
        folders.append(os.path.dirname(os.path.realpath(path)))  # noqa: PTH120 as above
    for name in names.paths:
        every = list(dict.fromkeys(os.path.join(folder, name) for folder in folders))  # noqa: PTH118 as above
        yield from [each for each in every if os.path.lexists(each)] or every
    for text in names.loose:
        every = [os.path.join(folder, text) for folder in folders]  # noqa: PTH118 as above
        # The folder of the overlay is a likely guess, no more: its absence tells nothing.
        yield from (each for each in every if os.path.lexists(each))


def _missing(file: str) -> _Step:
    """Doubt a file that is not there, unless its folder shows that its volume is mounted.

    One that has the name of a base is taken for it: in a container our folder may lie elsewhere.
    """
    folder, name = os.path.split(os.path.realpath(file))
    if bases := mentioned_bases(name):
        return _Step(bases=bases)
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return _NOWHERE
        why = "in an empty folder, as a mount point is without its file system"
    except OSError as error:
        why = f"and its folder cannot be read: {error.strerror}"
    return _doubt(file, f"is a backing file that is not there, {why}")


def _doubt(file: str, why: str) -> _Step:
    return _Step(doubt=Doubt(path=Path(file), why=why))
