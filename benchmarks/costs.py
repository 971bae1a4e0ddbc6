"""What work costs: CPU, time, memory, bytes written, processes, fsyncs."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import orphans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
"""What Python tells an audit hook when a process is started (Python's audit events table)."""

_TIMES = slice(11, 15)
"""utime, stime, cutime and cstime behind the name in /proc/PID/stat (proc_pid_stat(5))."""

_BLOCK = 512
"""Bytes of a block as getrusage(2) counts them on Linux."""


@dataclass(slots=True, kw_only=True)
class Cost:
    """What something cost: seconds, bytes, numbers. None: not counted here.

    ``peak`` is the most memory of a daemon itself, ``written`` what went to a device.
    """

    what: str
    wall: float = 0.0
    cpu: float = 0.0
    peak: int | None = None
    written: int | None = None
    processes: int | None = None
    fsyncs: int | None = None

    def plus(self, other: Cost) -> Cost:
        """Give the cost of both, one after the other, under the name of this one."""
        return Cost(
            what=self.what,
            wall=self.wall + other.wall,
            cpu=self.cpu + other.cpu,
            written=(self.written or 0) + (other.written or 0),
            processes=(self.processes or 0) + (other.processes or 0),
        )


def spend(*words: str | Path, what: str = "") -> Cost:
    """Run a command to its end, and give what it and all that it started cost.

    Raises: ``CalledProcessError`` where it fails; what it said is on stderr.
    """
    return spend_at_once([words], what=what or str(words[0]))


def spend_at_once(commands: Sequence[Sequence[str | Path]], what: str) -> Cost:
    """Run commands side by side until the last one ends, and give what they cost together.

    Raises: ``CalledProcessError`` where one fails; what it said is on stderr.
    """
    cost = Cost(what=what, written=0, processes=len(commands))
    begun = time.perf_counter()
    children = [_started(words) for words in commands]
    used = [_ended(child) for child in children]
    cost.wall = time.perf_counter() - begun
    cost.cpu = sum(each.ru_utime + each.ru_stime for each in used)
    cost.written = sum(each.ru_oublock for each in used) * _BLOCK
    for child in children:
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
    return cost


def _started(words: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)


def _ended(child: subprocess.Popen[bytes]) -> resource.struct_rusage:
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return used


@contextlib.contextmanager
def watching(pid: int, what: str) -> Iterator[Cost]:
    """Watch a process, and all that it starts, while the context lasts.

    The context itself must start none.
    """
    cost = Cost(what=what)
    ours = orphans.adopt()
    # Linux begins VmHWM anew for this number (proc_pid_clear_refs(5)).
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    cpu, written, begun = cpu_of(pid), _written_by(pid), time.perf_counter()
    yield cost
    cost.wall = time.perf_counter() - begun
    left = orphans.bury(ours)
    cost.cpu = cpu_of(pid) - cpu + sum(used.ru_utime + used.ru_stime for used in left)
    cost.written = _written_by(pid) - written + sum(used.ru_oublock * _BLOCK for used in left)
    cost.peak = memory_of(pid, "VmHWM")


def cpu_of(pid: int) -> float:
    """Give the seconds of CPU of a process and of the children that it has waited for."""
    # The name, in parentheses, may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_TIMES])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int, which: str = "VmRSS") -> int:
    """Give the bytes of memory that a process has, or with ``VmHWM`` had at most."""
    return _member(f"/proc/{pid}/status", which) << 10


def _written_by(pid: int) -> int:
    return _member(f"/proc/{pid}/io", "write_bytes")


def _member(path: str, name: str) -> int:
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next(int(value.split()[0]) for key, _, value in lines if key == name)


class Meter:
    """Measures pieces of work of this process, one after the other."""

    def __init__(self) -> None:
        self._started = 0
        sys.addaudithook(self._count)

    def _count(self, event: str, _arguments: tuple[object, ...]) -> None:
        if event in _STARTS:
            self._started += 1

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[Cost]:
        """Measure what the context does, in all threads."""
        cost = Cost(what=what)
        started, cpu, begun = self._started, _own_cpu(), time.perf_counter()
        yield cost
        cost.wall = time.perf_counter() - begun
        cost.cpu = _own_cpu() - cpu
        cost.processes = self._started - started


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
