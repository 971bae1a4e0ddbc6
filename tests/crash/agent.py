"""An agent whose daemons are forked, and may be told to kill themselves at a failpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.crash.failpoints import Order
from tests.e2e.agent import Agent, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


class Forked:
    """A daemon that a fork server has started."""

    def __init__(self, pid: int, ended: asyncio.Future[str]) -> None:
        self.pid = pid
        self._ended = ended

    async def wait(self) -> int:
        """Wait for the end of it and of the programs it ran, and give its exit status."""
        return int(await asyncio.shield(self._ended))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        if self.over:
            raise ProcessLookupError
        os.kill(self.pid, number)


class ForkServer:
    """The process that forks daemons, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def fork(self, order: dict[str, object]) -> Forked:
        """Start a daemon; the one before it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        pid = int(await self._line())
        return Forked(pid, asyncio.ensure_future(self._line()))

    async def _line(self) -> str:
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, "the fork server has ended"
        return line


@contextlib.contextmanager
def fork_server() -> Iterator[ForkServer]:
    """Run a fork server."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.forkserver"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield ForkServer(process)


@dataclass(kw_only=True)
class ForkedAgent(Agent):
    """An agent whose daemon is forked; ``order`` is what the next one gets."""

    server: ForkServer
    order: Order | None = None
    _forked: Forked | None = None

    async def start_or_die(self) -> bool:
        """Start the daemon; False where it was killed before it was ready."""
        try:
            await self.start()
        except AssertionError:
            if await self.status() != -signal.SIGKILL:
                raise
            return False
        return True

    async def status(self) -> int:
        """Wait for the end of the daemon, and give its exit status."""
        assert self._forked is not None
        return await self._forked.wait()

    @property
    def running(self) -> bool:
        """Whether the daemon has been started, and has not ended."""
        return self._forked is not None and not self._forked.over

    async def _run(self) -> Running:
        self._forked = await self.server.fork(
            {
                "config": str(self.config),
                "log": str(self.folder / "log"),
                "notify": str(self.folder / "notify"),
                "failpoints": None if self.order is None else asdict(self.order),
            }
        )
        return self._forked
