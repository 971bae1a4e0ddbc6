"""Work that no request waits for."""

from __future__ import annotations

import asyncio
import inspect

from structlog.testing import capture_logs

from cacheagent.errors import ImageNotFoundError
from cacheagent.service.background import Background


async def test_what_fails_ends_alone() -> None:
    """Neither a refusal nor a fault of ours in one piece of work ends another, or the daemon."""

    async def refused() -> None:
        raise ImageNotFoundError("no such image")

    async def broken() -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            background = Background(group)
            ended = [
                background.task(refused(), "a refusal"),
                background.task(broken(), "a fault"),
            ]
            await asyncio.wait(ended)
            goes_on = background.task(asyncio.sleep(0), "the rest")
    assert not goes_on.cancelled()
    assert [(line["what"], line["log_level"]) for line in logs] == [
        ("a refusal", "warning"),
        ("a fault", "error"),
    ]
    assert logs[0]["word"] == "image-not-found"


async def test_stop_waits_until_all_has_wound_down() -> None:
    """What is closed after the stop is not used any more by work that is still ending."""
    began, ended = asyncio.Event(), []

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("work")

    async with asyncio.TaskGroup() as group:
        background = Background(group)
        background.start(work(), "work")
        await began.wait()
        await background.stop()
        assert ended == ["work"]
        await background.stop()


async def test_work_that_never_began_is_no_complaint() -> None:
    """A stop right after a request leaves no coroutine behind that nobody awaited."""
    async with asyncio.TaskGroup() as group:
        background = Background(group)
        work = asyncio.sleep(0)
        background.start(work, "work")
        await background.stop()
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
