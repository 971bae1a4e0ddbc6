"""Work that runs to its end whatever becomes of its caller."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.sync.uninterrupted import uninterrupted


class Work:
    """Work that begins, and ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.ended = False
        self._error = error

    async def run(self) -> str:
        """Wait for permission, and end well or with the error."""
        self.begun.set()
        await self.may_end.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "done"


async def test_result_and_error_pass_through() -> None:
    """A caller that stays gets what the work returns or raises."""
    sound, broken = Work(), Work(ValueError("broken"))
    for work in (sound, broken):
        work.may_end.set()
    assert await uninterrupted(sound.run()) == "done"
    with pytest.raises(ValueError, match="broken"):
        await uninterrupted(broken.run())


@pytest.mark.parametrize("error", [None, ValueError("unheard")])
async def test_cancellation_waits_for_the_end(error: Exception | None) -> None:
    """A caller that is cancelled, even twice, leaves only when the work has ended."""
    work = Work(error)
    caller = asyncio.create_task(uninterrupted(work.run()))
    await work.begun.wait()
    for _ in range(2):
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_work_that_is_cancelled_itself_is_no_hang() -> None:
    """Work that somebody else cancels ends its caller as well, cancelled or not."""
    for leaves in (False, True):
        task = asyncio.create_task(Work().run())
        caller = asyncio.create_task(uninterrupted(task))
        await asyncio.sleep(0)
        if leaves:
            caller.cancel()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller


async def test_work_is_told_that_nobody_waits_for_it() -> None:
    """Work that can end soon hears of it when its caller goes, and is still waited for."""
    work = Work()
    caller = asyncio.create_task(uninterrupted(work.run(), on_cancel=work.may_end.set))
    await work.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended
