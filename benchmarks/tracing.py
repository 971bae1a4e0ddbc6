"""Processes and fsyncs of a daemon, counted by strace apart from any timed run."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.costs import Cost

_STARTS = ("clone", "clone3", "fork", "vfork")
_SYNCS = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range")
_PATIENCE = 10.0


@contextlib.contextmanager
def counting(pid: int, folder: Path, cost: Cost) -> Iterator[None]:
    """Count into ``cost`` what a process and its children do while the context lasts.

    Where strace is missing, or may not attach, nothing is counted.
    """
    log = folder / "strace.log"
    words = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(log), "-p", str(pid)]
    words += ["-e", f"trace={','.join((*_STARTS, *_SYNCS))}"]
    if shutil.which("strace") is None:
        yield
        return
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as tracer:
        attached = _is_attached(pid, tracer)
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
    if attached:
        calls = calls_in(log.read_text(errors="replace"))
        cost.processes = sum(calls.get(name, 0) for name in _STARTS)
        cost.fsyncs = sum(calls.get(name, 0) for name in _SYNCS)


def _is_attached(pid: int, tracer: subprocess.Popen[bytes]) -> bool:
    """Wait until strace holds every thread of the process; False where it gives up."""
    until = time.monotonic() + _PATIENCE
    while tracer.poll() is None and time.monotonic() < until:
        states = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
        if all(f"TracerPid:\t{tracer.pid}\n" in state for state in states):
            return True
        time.sleep(0.01)
    return False


def calls_in(text: str) -> dict[str, int]:
    """Count the calls by name; a new thread is no call."""
    calls: dict[str, int] = {}
    for line in text.splitlines():
        begun = re.match(r"\d+ +(\w+)\(", line)
        if begun and "CLONE_THREAD" not in line:
            calls[begun[1]] = calls.get(begun[1], 0) + 1
    return calls
