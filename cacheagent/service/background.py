"""Work that no request waits for, owned by the daemon's task group."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import ProblemError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = structlog.get_logger(__name__)


class Background:
    """Starts tasks in a task group; a problem that one of them meets is logged and ends there."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, object], what: str) -> None:
        """Run ``work`` beside the requests; ``what`` says in the log what it was."""
        self._tasks.add(self.task(work, what))

    def task(self, work: Coroutine[object, object, object], what: str) -> asyncio.Task[None]:
        """Do the same, and give the task to somebody who may want to end it."""
        task = self._group.create_task(self._guarded(work, what), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before it began never comes to its work.
        task.add_done_callback(lambda _: work.close())
        return task

    async def _guarded(self, work: Coroutine[object, object, object], what: str) -> None:
        try:
            await work
        except ProblemError as error:
            _log.warning("background work failed", what=what, word=error.word, why=str(error))
        except Exception:  # noqa: BLE001 -- what one request met must not end the daemon
            _log.exception("background work broke", what=what)

    async def stop(self) -> None:
        """Cancel what still runs, and wait for its end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
