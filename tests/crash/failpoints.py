"""Every step by which a daemon changes its state folder is a failpoint, and finds itself.

To be installed in the process of a daemon before it runs. The steps are those that the
interpreter tells of by audit events, and the few more that it does not tell of. A failpoint is
reached just before its deed, and named by where in the daemon that is, and by what is done.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cacheagent
from cacheagent.backends.catalog import database
from cacheagent.backends.store import BLOCK_SIZE
from cacheagent.backends.systemd import Notifier
from cacheagent.service import atonce, ingest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(cacheagent.__file__).parent)

PATH_EVENTS = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.setxattr": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "fcntl.ioctl": 1,
}
"""Events that change a file or a folder, and how many of their arguments name one.

A path may be an open file instead. What ``os.replace``, ``os.fchmod`` and the like do has these
events too.
"""

MISSING = {"os.mkdir": False, "os.remove": True, "os.rmdir": True, "os.chmod": True}
"""What comes to nothing where the path is there, or where it is missing: that is no step."""

READING = {"qemu-img --version", "qemu-img check", "qemu-img info", "ldconfig -p"}
"""Programs that write nothing."""

UNTOLD = ("fsync", "fdatasync", "pwrite", "write", "copy_file_range", "sendfile")
"""What changes a file in an open descriptor, or makes that durable, without any event."""

WRITERS = {"copy_file_range": 1}
"""Which argument of these is the file that changes, where it is not the first."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

NAMES = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"sha\d+-[0-9a-f]{16,}"), "<base>"),
    (re.compile(r"\.\d+\.[0-9a-f]{16}\."), ".<size>.<mark>."),
    (re.compile(r"\.\d{8}T\d{12}Z\."), ".<when>."),
    (re.compile(r"/proc/self/fd/\d+"), "<file>"),
)
"""What differs from run to run in the names of files, and what stands for it."""

SILENT = ("api", "cli", "sync", "daemon.py", "log.py", "process.py")
"""What only leads to the step, or carries it out: these do not tell one step from another."""

LONGEST_WAY = 3
"""Functions that the name of a failpoint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intrusion:
    """Somebody else's doing while the daemon works: ``source`` is copied to ``target``.

    ``before`` are the words of the failpoint at which that happens.
    """

    before: str
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a daemon is to do at its failpoints.

    ``folder`` is its state folder. They count when the daemon says that it is ready, or
    ``from_start``. Each is written to the file ``record`` as it is reached; at the
    ``occurrence``-th time that the one called ``kill`` is, the process kills itself.
    """

    folder: str
    from_start: bool = False
    intrusion: Intrusion | None = None
    record: str | None = None
    kill: str | None = None
    occurrence: int = 1


class Failpoints:
    """Finds the failpoints of this process, once ``install`` was called."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._armed = order.from_start
        self._left = order.occurrence
        self._intruded = False
        self._inside = threading.local()
        self._write = os.write
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._record = None if order.record is None else os.open(order.record, flags)

    def install(self) -> None:
        """Listen to all that this process does from now on; there is no way back."""
        # As often as there is something to write down, not as often as it pays.
        ingest.RECORD_EVERY = BLOCK_SIZE
        # What waits at the same time differs from run to run: each has a transaction of its own.
        database.MOST_AT_ONCE = 1
        atonce.MOST = 1
        for name in UNTOLD:
            setattr(os, name, self._told(name, getattr(os, name)))
        self._listen_to_the_catalog()
        self._listen_to_programs()
        self._arm_when_ready()
        sys.addaudithook(self._hear)

    def reach(self, what: str) -> None:
        """Come to a failpoint; ``what`` is about to be done."""
        if not self._armed or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        name = ": ".join((" > ".join(_way()), what)).removeprefix(": ")
        self._intrude(name)
        if self._record is not None:
            self._write(self._record, f"{name}\n".encode())
        if name == self._order.kill:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        self._inside.now = False

    def _intrude(self, name: str) -> None:
        """Let somebody do what he does at this failpoint, once."""
        intrusion = self._order.intrusion
        if intrusion is not None and not self._intruded and intrusion.before in name:
            self._intruded = True
            Path(intrusion.target).parent.mkdir(exist_ok=True)
            shutil.copy(intrusion.source, intrusion.target)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event, whatever it is about."""
        if count := PATH_EVENTS.get(event):
            if not _comes_to_nothing(event, arguments[0]):
                self._reach_files(event, arguments[:count])
        elif event == "open" and not isinstance(arguments[0], int):
            path, _, flags = arguments
            if path is not None and flags & WRITING:
                self._reach_files("open for writing", (path,))
        elif event == "sqlite3.connect":
            self._reach_files(event, arguments)
        elif event == "subprocess.Popen":
            self._reach_program(arguments[1], "begins")

    def _reach_files(self, deed: str, files: tuple[Any, ...]) -> None:
        """Come to a failpoint at files, if they are those of the agent."""
        names = [self._name(each) for each in files]
        known = [name for name in names if name is not None]
        if known:
            self.reach(f"{deed} {' -> '.join(known)}")

    def _reach_program(self, words: list[str], deed: str) -> None:
        """Come to a failpoint at a program, if that may write."""
        program = _program(words)
        if program not in READING:
            self.reach(f"{program} {deed}")

    def _name(self, file: int | str | bytes | os.PathLike[str]) -> str | None:
        """Name a file of the agent; None for any other."""
        try:
            path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file
        except OSError:
            return None
        name = os.path.relpath(os.fsdecode(path), self._order.folder)
        if name == ".." or name.startswith("../"):
            return None
        for pattern, general in NAMES:
            name = pattern.sub(general, name)
        return name

    def _told(self, name: str, deed: Callable[..., object]) -> Callable[..., object]:
        """Give ``deed`` with a failpoint before it."""
        which = WRITERS.get(name, 0)

        def told(*arguments: Any, **named: Any) -> object:  # noqa: ANN401 -- whatever it takes
            self._reach_files(f"os.{name}", (arguments[which],))
            return deed(*arguments, **named)

        return told

    def _listen_to_the_catalog(self) -> None:
        failpoints = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:  # noqa: ANN401 -- as it
                if sql == "COMMIT" or "journal_mode" in sql:
                    failpoints.reach(f"{_query()}before {sql}")
                result = super().execute(sql, *arguments)
                if sql == "COMMIT":
                    failpoints.reach(f"{_query()}after COMMIT")
                return result

            def executescript(self, sql: str, /) -> sqlite3.Cursor:
                failpoints.reach("before the script")
                result = super().executescript(sql)
                failpoints.reach("after the script")
                return result

        connect = sqlite3.connect
        sqlite3.connect = lambda *a, **named: connect(*a, **named, factory=Connection)  # type: ignore[assignment]  # the one call there is

    def _listen_to_programs(self) -> None:
        """Come to a failpoint when a program has just begun, too."""
        begin = subprocess.Popen.__init__

        def told(process: Any, arguments: Any, *more: Any, **named: Any) -> None:  # noqa: ANN401 -- Popen's
            begin(process, arguments, *more, **named)
            self._reach_program(arguments, "runs")

        subprocess.Popen.__init__ = told  # type: ignore[method-assign, assignment]

    def _arm_when_ready(self) -> None:
        ready = Notifier.ready

        def told(notifier: Notifier) -> None:
            self._armed = True
            ready(notifier)

        Notifier.ready = told  # type: ignore[method-assign, assignment]


def _comes_to_nothing(event: str, file: int | str | bytes | os.PathLike[str]) -> bool:
    """Tell whether what is about to be done will fail for what is there, or is not."""
    idle = MISSING.get(event)
    return idle is not None and not isinstance(file, int) and os.path.lexists(file) is not idle


def _program(words: list[str]) -> str:
    """Name the program that is started under limits, and its command."""
    words = [os.fsdecode(word) for word in words]
    while "--" in words:
        words = words[words.index("--") + 1 :]
    return " ".join((Path(words[0]).name, *words[1:2]))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- the way to them
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            yield frame
        frame = frame.f_back


def _way() -> list[str]:
    """Name the functions of the agent that led here, the innermost last."""
    way: list[str] = []
    for frame in _frames():
        module = Path(frame.f_code.co_filename).relative_to(PACKAGE)
        name = frame.f_code.co_name
        if "<" in frame.f_code.co_qualname or module.parts[0] in SILENT:
            continue
        room = module.parent.name if module.stem == "__init__" else module.stem
        if f"{room}.{name}" not in way[-1:]:
            way.append(f"{room}.{name}")
    return way[LONGEST_WAY - 1 :: -1]


def _query() -> str:
    """Name the query whose transaction it is."""
    works = (frame.f_locals.get("work") for frame in _frames())
    return next((f"{work.query.__name__}, " for work in works if work is not None), "")
