"""What the beginnings of files say, remembered from scan to scan for as long as they are the same.

A file is the same while device, inode, size and times are equal. The kernel stamps files by a
clock of some milliseconds, network file systems by one of up to two seconds: a file that was
changed just before it was read may be changed again under the same time, so such an entry is not
trusted.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from cacheagent.backends.qcow2.header import MAGIC, opened, parse
from cacheagent.backends.qcow2.names import mentioned_bases
from cacheagent.errors import NotQcow2Error

_RACY_NS = 2_000_000_000
_SEARCHED = 1 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """What the beginning of a file says of the files behind it.

    ``backing`` is the name of its backing file as it stands there. ``mentioned`` is for what
    calls itself qcow2 and is broken: names of bases that stand in its first MiB.
    """

    backing: str | None = None
    mentioned: frozenset[str] = frozenset()


_NOTHING = Head()


class Heads:
    """Reads beginnings of files, and none twice that is the same. For one thread at a time."""

    def __init__(self) -> None:
        self._before: dict[bytes, Head] = {}
        self._now: dict[bytes, Head] = {}
        # Many overlays say the same: what they say is kept once.
        self._said: dict[Head, Head] = {}

    def next_scan(self) -> None:
        """Begin a scan."""
        self._before, self._now = self._now, {}
        self._said = {head: head for head in self._before.values()}

    def end_scan(self) -> None:
        """End it: of what it did not see nothing is kept until the next one."""
        self._before, self._said = {}, {}

    def of(self, path: str, found: os.stat_result) -> Head:
        """Give the head of the file at ``path``, of which stat(2) just said ``found``.

        Raises: ``OSError`` where it cannot be read.
        """
        identity = _identity(found)
        head = self._before.pop(identity, None) or self._now.get(identity)
        if head is None:
            settled, head = _read(path)
            head = self._said.setdefault(head, head)
            if settled is None:
                return head
            identity = settled
        self._now[identity] = head
        return head


def _identity(found: os.stat_result) -> bytes:
    """Give device, inode, size and times; as text they take a third of what a tuple does."""
    numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return b"%d %d %d %d %d" % numbers


def _read(path: str) -> tuple[bytes | None, Head]:
    """Read a head, and give with it the identity under which it may be trusted (None: none)."""
    try:
        with opened(path) as fd:
            found = os.fstat(fd)
            # A block device does not tell by its times what was written to it.
            settled = stat.S_ISREG(found.st_mode) and (
                time.time_ns() - found.st_ctime_ns >= _RACY_NS
            )
            return _identity(found) if settled else None, _head(fd, found.st_mode)
    except NotQcow2Error:
        return None, _NOTHING


def _head(fd: int, mode: int) -> Head:
    # A guest's disk on a logical volume may be qcow2 too.
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return _NOTHING
    try:
        backing = parse(fd).backing_file
    except ValueError:
        if os.pread(fd, len(MAGIC), 0) != MAGIC:
            return _NOTHING
        return Head(mentioned=mentioned_bases(os.pread(fd, _SEARCHED, 0).decode("latin-1")))
    return Head(backing) if backing else _NOTHING
