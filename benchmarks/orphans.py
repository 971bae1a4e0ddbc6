"""What a daemon has left behind: processes whose parent did not wait for them.

bubblewrap ends before the first process of its namespace does. So nobody below us counts what
that one used, unless it becomes our child when its parent has gone: PR_SET_CHILD_SUBREAPER, in
prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from resource import struct_rusage

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0


def adopt() -> Collection[int]:
    """Let orphans become children of this process; give the children that it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return _children()


def bury(known: Collection[int]) -> list[struct_rusage]:
    """Wait for every child that is not among the known ones, and give what each has used."""
    used, until = [], time.monotonic() + _PATIENCE
    while (left := _children() - set(known)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                ended, _, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    used.append(usage)
        time.sleep(0.001)
    return used


def _children() -> set[int]:
    mine, found = str(os.getpid()), set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # State and parent stand behind the name, which is in parentheses (proc_pid_stat(5)).
            if path.read_text().rpartition(")")[2].split()[1] == mine:
                found.add(int(path.parent.name))
    return found
