"""The overlays that lie below folders, whoever made them, and the bases that they lead to.

A scan is fast enough to be made whenever somebody asks: it starts no process, it makes no call
but those that look at each file once, and what it read the last time it does not read again while
the file is the same.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.backends.qcow2.chain import BasesFolder, Chains, Doubt
from cacheagent.backends.qcow2.declared import is_raw
from cacheagent.backends.qcow2.heads import Heads
from cacheagent.backends.qcow2.names import file_names, mentioned_bases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.backends.qcow2.heads import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlays:
    """The overlays that a scan found, by the base behind them.

    ``users`` has, for the name of each file in the folder of the bases, the paths of overlays that
    lead to it, over any number of files between; as text, which for ten thousand takes some MiB
    less. A name may be there whose file is not. Each of the ``doubts`` is about every base.
    """

    users: Mapping[str, Sequence[str]]
    doubts: tuple[Doubt, ...]


class OverlayScanner:
    """Looks for overlays of the files in one folder, ``bases``. One scan runs at a time."""

    def __init__(self, bases: Path) -> None:
        self._bases = bases
        self._scanning = threading.Lock()
        self._heads = Heads()

    def scan(self, instances: Path, scan_dirs: Sequence[Path] = ()) -> Overlays:
        """Read the headers of all files below the folders. For threads: it reads whole trees.

        Links are followed, to folders as to files: QEMU follows them too. Whatever cannot be
        read is a doubt, and so is a folder of ``scan_dirs`` that is empty, as a mount point is
        without its file system. A file or a folder that goes meanwhile is none.

        A file that calls itself qcow2 and is broken is an overlay of the bases whose names stand
        in its first MiB: QEMU cannot open it, but somebody may mend it. A file that the host
        itself calls raw may keep bases by what it begins with, and is never a reason for doubt.
        """
        with self._scanning:
            self._heads.next_scan()
            walk = _Walk(BasesFolder(self._bases), self._heads)
            walk.root(str(instances), may_be_empty=True)
            for folder in scan_dirs:
                walk.root(str(folder), may_be_empty=False)
            self._heads.end_scan()
            return walk.result()


def bases_named(bases: Path, names: Iterable[str]) -> frozenset[str]:
    """Give the names of all files in the folder ``bases`` that these names of files may mean.

    For names that QEMU gives of what it has open, where each file of a chain has one: no file is
    read, links are resolved. For threads.
    """
    folder = BasesFolder(bases)
    found: set[str] = set()
    for name in names:
        known = file_names(name)
        # Where QEMU's working folder is, nobody knows here.
        loose = (*known.loose, *(path for path in known.paths if not path.startswith("/")))
        found.update(base for text in loose for base in mentioned_bases(text))
        absolute = (path for path in known.paths if path.startswith("/"))
        found.update(base for path in absolute if (base := folder.name_of(path)))
    return frozenset(found)


class _Walk:
    """One scan."""

    def __init__(self, bases: BasesFolder, heads: Heads) -> None:
        self._folder = bases.path
        self._heads = heads
        self._chains = Chains(bases, heads)
        self._users: dict[str, list[str]] = {}
        # By what they say: many overlays may lead to one of them.
        self._doubts: dict[tuple[Path, str], Doubt] = {}
        # The inodes of the folders on each device.
        self._seen: dict[int, set[int]] = defaultdict(set)
        self._todo: list[str] = []

    def result(self) -> Overlays:
        return Overlays(users=self._users, doubts=tuple(self._doubts.values()))

    def root(self, root: str, *, may_be_empty: bool) -> None:
        try:
            with os.scandir(root) as entries:
                if not may_be_empty and next(entries, None) is None:
                    why = "is empty, as a mount point is without its file system"
                    self._doubt(Doubt(path=Path(root), why=why))
            found = os.stat(root)  # noqa: PTH116 a Path for each file costs more than the call
        except OSError as error:
            self._unreadable(root, error)
            return
        self._enter(root, found)
        while self._todo:
            self._list(self._todo.pop())

    def _enter(self, folder: str, found: os.stat_result) -> None:
        seen = self._seen[found.st_dev]
        if found.st_ino not in seen:  # else a link that leads in a circle, or to a known tree
            seen.add(found.st_ino)
            self._todo.append(folder)

    def _list(self, folder: str) -> None:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._visit(entry)
        except (FileNotFoundError, NotADirectoryError):
            return  # gone meanwhile
        except OSError as error:
            self._unreadable(folder, error)

    def _visit(self, entry: os.DirEntry[str]) -> None:
        try:
            found = entry.stat()
            mode = found.st_mode
            if stat.S_ISREG(mode):
                self._file(entry.path, self._heads.of(entry.path, found))
            elif stat.S_ISDIR(mode):
                self._enter(entry.path, found)
        except (FileNotFoundError, NotADirectoryError):
            # A file that goes meanwhile is nobody's; a link that leads nowhere may lead to an
            # overlay on a volume that is not mounted.
            if os.path.lexists(entry.path):
                self._doubt(Doubt(path=Path(entry.path), why="is a link that leads nowhere"))
        except OSError as error:
            self._unreadable(entry.path, error)

    def _file(self, path: str, head: Head) -> None:
        if head.backing is None and not head.mentioned:
            return
        if head.backing is not None:
            folder, _, name = head.backing.rpartition("/")
            # As nearly every overlay names its base: nothing to look up.
            if folder == self._folder and name not in {"", ".", ".."}:
                self._users.setdefault(name, []).append(path)
                return
        behind = self._chains.behind(path, head)
        for base in behind.bases:
            self._users.setdefault(base, []).append(path)
        if behind.doubts and not is_raw(path):
            for doubt in behind.doubts:
                # The same one for all overlays that lead to it; the first of them is an example.
                named = f"{doubt.why}; {path} leads to it"
                self._doubts.setdefault((doubt.path, doubt.why), Doubt(path=doubt.path, why=named))

    def _unreadable(self, path: str, error: OSError) -> None:
        self._doubt(Doubt(path=Path(path), why=f"cannot be read: {error.strerror}"))

    def _doubt(self, doubt: Doubt) -> None:
        self._doubts[doubt.path, doubt.why] = doubt
