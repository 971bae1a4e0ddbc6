"""A thread for long work, which leaves the processor to whoever answers a request meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

NICE: Final = 10
"""What such a thread is worth beside the others of this process, as in nice(1).

Linux counts it per thread, and within a control group: beside the guests nothing changes.
"""


def modest_thread(name: str) -> ThreadPoolExecutor:
    """Give an executor of one thread, of low priority where the system lets it have that."""
    return ThreadPoolExecutor(1, name, initializer=_step_back)


def _step_back() -> None:
    me = threading.get_native_id()
    # Whoever runs all of the process at a lower priority yet means it.
    nice = max(os.getpriority(os.PRIO_PROCESS, me), NICE)
    # A filter of system calls may forbid it: the work is done all the same.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, me, nice)
