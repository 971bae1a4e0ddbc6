"""A wire to a real server: it can be listened to, and cut while bytes run through it.

::

    async with Proxy(server_url) as proxy:
        pause = proxy.interrupt("/file", after=1 << 20)
        ... # a client of proxy.url asks for something whose path ends so
        await pause.reached()   # a MiB of the answer has gone through, and no more
        pause.cut()             # the client sees its connection end
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

CHUNK = 64 << 10
PATIENCE = 60


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was passed on: its path and its headers, whose names know no case."""

    path: str
    headers: Message


@dataclass(slots=True, kw_only=True)
class Pause:
    """A place in an answer where the bytes stop until the connection is cut."""

    path: str
    after: int
    _reached: asyncio.Event = field(default_factory=asyncio.Event)
    _cut: asyncio.Event = field(default_factory=asyncio.Event)

    async def reached(self) -> None:
        """Return when the bytes have stopped."""
        async with asyncio.timeout(PATIENCE):
            await self._reached.wait()

    def cut(self) -> None:
        """Close the connection."""
        self._cut.set()

    async def hold(self) -> None:
        """Stop the bytes here, until the connection may be closed."""
        self._reached.set()
        await self._cut.wait()


@dataclass(slots=True)
class Proxy:
    """Passes connections on to ``target``, to be used as a context; ``url`` is its own address.

    One request for each connection is understood, as a server sends them that closes each.
    """

    target: str
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    _pauses: list[Pause] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Be gone: refuse connections, and end those that there are."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def interrupt(self, path: str, *, after: int) -> Pause:
        """Stop the next answer that has so many bytes, to a request whose path ends with this.

        With ``after`` 0 the server does not even get the request.
        """
        pause = Pause(path=path, after=after)
        self._pauses.append(pause)
        return pause

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            writer.close()
            self._open.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, headers = head.partition(b"\r\n")
        request = Request(line.decode().split()[1], BytesParser().parsebytes(headers))
        self.requests.append(request)
        if pause := self._pause_for(request, 0):
            await pause.hold()
            return
        address = urlsplit(self.target)
        answer, server = await asyncio.open_connection(address.hostname, address.port)
        try:
            server.write(head)
            await self._answer(request, answer, writer)
        finally:
            server.close()

    async def _answer(
        self, request: Request, answer: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        passed = 0
        while piece := await answer.read(CHUNK):
            pause = self._pause_for(request, passed + len(piece))
            writer.write(piece if pause is None else piece[: pause.after - passed])
            await writer.drain()
            if pause is not None:
                await pause.hold()
                return
            passed += len(piece)

    def _pause_for(self, request: Request, passed: int) -> Pause | None:
        for pause in self._pauses:
            if request.path.endswith(pause.path) and passed >= pause.after:
                self._pauses.remove(pause)
                return pause
        return None
