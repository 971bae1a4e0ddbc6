"""What running guests have open, asked over QMP.

QEMU serves one client on each socket at a time. So a socket that gives no greeting may be busy
with somebody else, and nobody knows what its guest has open. One that nobody listens on has no
guest behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import glob
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.qmp import ConnectError, QMPClient

from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_TIMEOUT = 5.0
_AT_ONCE = 16
_LONGEST_ANSWER = 4 << 20
"""Bytes; a node takes some 2 KiB. It is parsed on the loop."""
_LONGEST_REASON = 200
_NOBODY = {errno.ECONNREFUSED, errno.ENOENT}
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFiles:
    """What the guests behind sockets have open.

    ``names`` has, for each socket that answered, the names of the files of all its block nodes
    and of what their headers name behind them, as QEMU writes them: paths, ``json:``, or another
    protocol. Every file that QEMU has open has a node of its own, so a name that cannot be read
    hides none. ``unreachable`` has a reason for each socket, or folder of a pattern, that may
    stand for guests of which nothing is known.
    """

    names: Mapping[Path, frozenset[str]]
    unreachable: Mapping[Path, str]


class Guests:
    """Asks the guests of this host, ``timeout`` seconds each, sixteen side by side."""

    def __init__(self, *, timeout: float = _TIMEOUT) -> None:
        self._timeout = timeout
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # Two questions at once would keep one another from the sockets.
        self._asking = asyncio.Lock()

    async def files(self, patterns: Sequence[str]) -> GuestFiles:
        """Ask every guest whose QMP socket matches one of the patterns of the shell.

        As in the shell, ``*`` takes no slash and no dot at the beginning. A guest that goes
        meanwhile is unreachable for this once.
        """
        async with self._asking:
            found = await asyncio.to_thread(_find, patterns)
            async with asyncio.TaskGroup() as group:
                asked = {
                    socket: group.create_task(self._ask(socket))
                    for socket in found.sockets.values()
                }
        answers = {socket: task.result() for socket, task in asked.items()}
        reasons = {socket: why for socket, why in answers.items() if isinstance(why, str)}
        return GuestFiles(
            names={socket: got for socket, got in answers.items() if isinstance(got, frozenset)},
            unreachable={**found.closed, **reasons},
        )

    async def _ask(self, socket: Path) -> frozenset[str] | str | None:
        """Give the names, or the reason why there are none, or None where nobody listens."""
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout):
                    return await _files_of(socket)
            except TimeoutError:
                return f"gave no answer in {self._timeout:g} s; another client may be connected"
            except Exception as error:  # noqa: BLE001 whoever listens may say anything, and the library does not foresee all of it
                return None if _is_nobody(error) else _reason(error)


@dataclass(frozen=True, slots=True)
class _Found:
    """Sockets by what they really are, and what of the patterns cannot be looked at."""

    sockets: dict[str, Path] = field(default_factory=dict)
    closed: dict[Path, str] = field(default_factory=dict)


def _find(patterns: Iterable[str]) -> _Found:
    """Expand the patterns: as ``glob`` does, but what cannot be read is told."""
    found = _Found()
    for pattern in patterns:
        whole = Path(pattern)
        anchor = Path(whole.anchor)
        for path in _matches(anchor, whole.relative_to(anchor).parts, found):
            with _noting(path, found):
                if stat.S_ISSOCK(path.stat().st_mode):
                    found.sockets.setdefault(os.path.realpath(path), path)
    return found


def _matches(folder: Path, parts: Sequence[str], found: _Found) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    names = [parts[0]]
    if glob.has_magic(parts[0]):
        names = []
        with _noting(folder, found):
            names = [each for each in os.listdir(folder) if _fits(each, parts[0])]  # noqa: PTH208 names are all that is needed
    for name in sorted(names):
        yield from _matches(folder / name, parts[1:], found)


def _fits(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatch.fnmatchcase(name, pattern)


@contextlib.contextmanager
def _noting(path: Path, found: _Found) -> Iterator[None]:
    """Note that the path is there and cannot be looked at, where that is so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_THERE:
            found.closed[path] = f"cannot be read: {error.strerror}"


async def _files_of(socket: Path) -> frozenset[str]:
    client = _client()
    try:
        await client.connect(str(socket))
        nodes = await client.execute("query-named-block-nodes", {"flat": True})
    finally:
        await uninterrupted(_disconnect(client))
    return _names(nodes)


def _client() -> QMPClient:
    client = QMPClient(readbuflen=_LONGEST_ANSWER)
    # The library writes each failure down as an error; here it is an answer like another.
    client.logger = logging.Logger("qmp", logging.CRITICAL + 1)  # noqa: LOG001 it is nobody's
    # Nobody here wants events: a guest that sends many shall not fill our memory with them.
    client.events.event_filter = lambda _: False
    return client


async def _disconnect(client: QMPClient) -> None:
    """Leave nothing running. How the connection ended is known already, or no matter any more."""
    with contextlib.suppress(Exception):
        await client.disconnect()


def _names(nodes: object) -> frozenset[str]:
    if not isinstance(nodes, list):
        raise TypeError("gave no list of block nodes")
    names: set[str] = set()
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(node.get("file"), str):
            raise TypeError("gave a block node without the name of its file")
        names.add(node["file"])
        image = node.get("image")
        # The target of a copy may be open without its backing file, until the copy is done.
        behind = image.get("full-backing-filename") if isinstance(image, dict) else None
        if isinstance(behind, str):
            names.add(behind)
    return frozenset(names)


def _is_nobody(error: Exception) -> bool:
    cause = error.exc if isinstance(error, ConnectError) else error
    return isinstance(cause, OSError) and cause.errno in _NOBODY


def _reason(error: Exception) -> str:
    """Say in one line of bounded length what is wrong; the text may be a stranger's."""
    cause = error.exc if isinstance(error, ConnectError) else error
    if isinstance(cause, EOFError):
        return "closed the connection"
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text[:_LONGEST_REASON]
