"""An agent that is started, stopped and killed, on one folder and under one clock."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tests.service.rig import Clock, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import datetime
    from pathlib import Path

    from cacheagent.backends.store import Part
    from cacheagent.model import GlanceImage
    from tests.service.rig import Rig

T = TypeVar("T")

STUCK_SECONDS = 60
"""What takes longer than this does not come to an end."""


class Killed(BaseException):
    """The agent was killed; nobody is left who could handle that."""


class Life:
    """Ends after so many deeds: calls of the store, of the catalog, of a download's file."""

    def __init__(self) -> None:
        self._left: int | None = None
        self.over = asyncio.Event()

    def end_after(self, deeds: int) -> None:
        """Let so many deeds be done, and no other."""
        self._left = deeds

    def go_on(self) -> None:
        """Take that back, if it has not come to it."""
        self._left = None

    def deed(self) -> None:
        """Do one more; raises ``Killed`` from the moment on where life is over."""
        if self._left == 0:
            self.over.set()
        if self.over.is_set():
            raise Killed
        if self._left is not None:
            self._left -= 1


class Agent:
    """The services of an agent, and the process around them as far as a kill goes."""

    def __init__(self, folder: Path, url: str, sections: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self._url = url
        self._sections = sections
        self._clock = Clock()
        self._rig: Rig | None = None
        self._life = Life()
        self._end = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def rig(self) -> Rig:
        """The services."""
        assert self._rig is not None, "the agent does not run"
        return self._rig

    @property
    def now(self) -> datetime:
        """The time of day."""
        return self._clock.time()

    def pass_time(self, seconds: float) -> None:
        """Let time go by."""
        self._clock.now += seconds
        self._set_clock()

    def set_back(self, seconds: float) -> None:
        """Set the clock of the host back; that which only goes forward does not notice."""
        self._clock.epoch -= timedelta(seconds=seconds)
        self._set_clock()

    def _set_clock(self) -> None:
        if self._rig is not None:
            self._rig.clock.now, self._rig.clock.epoch = self._clock.now, self._clock.epoch

    # --- the process ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Start, reconcile, and wait until what that began has ended."""
        # What tasks of a killed process ended with: nobody is left to whom it would matter.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        self._life, self._end = Life(), asyncio.Event()
        opened: asyncio.Future[Rig] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(opened))
        waited: set[asyncio.Future[Any]] = {self._running, opened}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            await self._running
        self._rig = opened.result()
        self._set_clock()
        try:
            await self._rig.reconcile.run(self._rig.parts.now())
        except BaseException:
            await self.stop()
            raise
        await self._settle()

    async def _run(self, opened: asyncio.Future[Rig]) -> None:
        async with rig_on(self._folder, self._url, **self._sections) as rig:
            _put_under(self._life, rig)
            opened.set_result(rig)
            await self._end.wait()

    async def stop(self) -> None:
        """Stop in order."""
        self._end.set()
        assert self._running is not None
        await self._running
        self._rig = None

    async def kill(self) -> None:
        """End at once: nothing is done any more, whatever was under way."""
        self._life.over.set()
        tasks = {each for each in asyncio.all_tasks() if not _of_asyncio(each)}
        tasks -= {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        _, stuck = await asyncio.wait(tasks, timeout=STUCK_SECONDS)
        assert not stuck, stuck
        self._rig = None

    # --- what is asked of it -------------------------------------------------------------------

    async def do(self, work: Callable[[Rig], Awaitable[T]], deeds: int | None = None) -> T:
        """Do ``work`` and wait until nothing goes on any more; raises what it raises.

        With ``deeds`` the agent is killed after so many, where it comes to that: then ``Killed``
        is raised.
        """
        if deeds is not None:
            self._life.end_after(deeds)
        task = asyncio.create_task(self._whole(work))
        over = asyncio.create_task(self._life.over.wait())
        done, _ = await asyncio.wait(
            {task, over}, timeout=STUCK_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        assert done, f"stuck: {asyncio.all_tasks()}"
        if self._life.over.is_set():
            await self.kill()
            raise Killed
        over.cancel()
        self._life.go_on()
        return task.result()

    async def _whole(self, work: Callable[[Rig], Awaitable[T]]) -> T:
        try:
            return await work(self.rig)
        finally:
            await self._settle()

    async def _settle(self) -> None:
        background = self.rig.parts.background._tasks  # noqa: SLF001 -- nobody else has to know
        while background:
            await asyncio.wait(tuple(background))


def _of_asyncio(task: asyncio.Task[Any]) -> bool:
    """Tell whether it is a task of asyncio's own, which connects the pipes of a new process.

    Without it, who starts that process waits for ever, also when cancelled.
    """
    coroutine: Any = task.get_coro()
    return str(coroutine.__qualname__).startswith("BaseSubprocessTransport.")


def _put_under(life: Life, rig: Rig) -> None:
    """Let the deeds of an agent end with its life."""
    store, catalog = rig.parts.store, rig.parts.catalog._db  # noqa: SLF001 -- all deeds pass there
    loop = asyncio.get_running_loop()
    in_threads: tuple[tuple[object, str], ...] = (
        (rig.parts.catalog, "claim_disks"),
        (store, "clone_disks"),
        (rig.parts.catalog, "finish_disks"),
    )
    for owner, name in in_threads:
        setattr(owner, name, _mortal_in_thread(life, loop, getattr(owner, name)))
    deeds = ((store, "_run_in"), (store, "clone_disk"), (catalog, "read"), (catalog, "write"))
    for owner, name in deeds:
        setattr(owner, name, _mortal(life, getattr(owner, name)))
    parts, opened = store.part, "part"

    @contextlib.asynccontextmanager
    async def part(image: GlanceImage, give_way: Callable[[], bool]) -> AsyncIterator[Part]:
        life.deed()
        async with parts(image, give_way) as made:
            run, name = made._run, "_run"  # noqa: SLF001 -- all deeds of a part pass there

            def told(*arguments: Any) -> asyncio.Future[Any]:  # noqa: ANN401 -- whatever it takes
                life.deed()
                return run(*arguments)

            setattr(made, name, told)
            yield made

    setattr(store, opened, part)


def _mortal_in_thread(
    life: Life, loop: asyncio.AbstractEventLoop, deed: Callable[..., T]
) -> Callable[..., T]:
    async def lives() -> None:
        life.deed()

    def told(*arguments: Any) -> T:  # noqa: ANN401 -- whatever it takes
        asyncio.run_coroutine_threadsafe(lives(), loop).result()
        return deed(*arguments)

    return told


def _mortal(
    life: Life, deed: Callable[..., Coroutine[Any, Any, T]]
) -> Callable[..., Coroutine[Any, Any, T]]:
    async def told(*arguments: Any, **named: Any) -> T:  # noqa: ANN401 -- whatever it takes
        life.deed()
        return await deed(*arguments, **named)

    return told
