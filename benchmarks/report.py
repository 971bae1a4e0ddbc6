"""What a benchmark measured: a table for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"}
"""What Python tells an audit hook when a process is started (Python's audit events table)."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One measurement: seconds of CPU of this process, seconds that passed, processes started."""

    what: str
    cpu: float = 0.0
    wall: float = 0.0
    processes: int = 0


class Meter:
    """Measures pieces of work one after the other."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._started = 0
        sys.addaudithook(self._count)

    def _count(self, event: str, _arguments: tuple[object, ...]) -> None:
        if event in _STARTS:
            self._started += 1

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[Row]:
        """Measure what the context does, in all threads of this process."""
        row = Row(what=what)
        started, cpu, wall = self._started, _cpu(), time.perf_counter()
        yield row
        row.wall = time.perf_counter() - wall
        row.cpu = _cpu() - cpu
        row.processes = self._started - started
        self.rows.append(row)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def show(rows: Sequence[Row], reference: Row, sizes: Mapping[str, int], folder: Path) -> None:
    """Print the rows, each with its CPU as a multiple of the reference, and all of it as JSON."""
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}  CPU s  wall s  processes  CPU / reference")
    for row in rows:
        ratio = row.cpu / reference.cpu if reference.cpu else 0.0
        print(
            f"{row.what:{width}}  {row.cpu:5.2f}  {row.wall:6.2f}  {row.processes:9}  {ratio:15.2f}"
        )
    facts = {
        "sizes": dict(sizes),
        "machine": _machine(folder),
        "reference": reference.what,
        "rows": [replace(row, cpu=round(row.cpu, 3), wall=round(row.wall, 3)) for row in rows],
    }
    print(json.dumps(facts, default=asdict))


def _machine(folder: Path) -> dict[str, object]:
    names = (line.partition(":") for line in _lines("/proc/cpuinfo"))
    model = next((value.strip() for key, _, value in names if key.strip() == "model name"), "?")
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "file_system": kind,
    }


def _lines(path: str) -> list[str]:
    with open(path) as file:  # noqa: PTH123 -- no Path is at hand
        return file.read().splitlines()
