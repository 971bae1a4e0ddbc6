"""A thread that is in nobody's way."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from cacheagent.sync.modest import NICE, modest_thread

if TYPE_CHECKING:
    import pytest


def _own_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_its_work_has_a_lower_priority_and_nothing_else_has() -> None:
    """Requests are answered by the others, which stay as they were."""
    before = _own_nice()
    with modest_thread("modest") as thread:
        assert thread.submit(_own_nice).result() == max(before, NICE)
    assert _own_nice() == before


def test_where_that_is_forbidden_the_work_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A filter of system calls does not stop a download."""

    def refused(_which: int, _who: int, _nice: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    with modest_thread("modest") as thread:
        assert thread.submit(int, "7").result() == 7
