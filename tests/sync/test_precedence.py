"""Short work before long work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cacheagent.sync import precedence
from cacheagent.sync.precedence import Precedence

if TYPE_CHECKING:
    import pytest


async def test_long_work_waits_for_short_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on when the last of those that are short has ended, and not before."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one = Precedence()
    first, second = one.short(), one.short()
    first.__enter__()
    second.__enter__()
    long = asyncio.create_task(one.give_way())
    await asyncio.sleep(0)
    first.__exit__(None, None, None)
    done, _ = await asyncio.wait({long}, timeout=0)
    assert not done
    second.__exit__(None, None, None)
    await long


async def test_nothing_short_keeps_nobody_waiting() -> None:
    """Where nobody goes first, long work does not even give the loop a turn."""
    one, turned = Precedence(), asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await one.give_way()
    assert not turned.is_set()


async def test_long_work_gives_way_for_a_while_only() -> None:
    """Short work without end does not keep long work from going on."""
    one = Precedence()
    with one.short():
        await one.give_way()
        await one.give_way()
