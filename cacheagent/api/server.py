"""The HTTP server behind every listener: connections are bounded, and none holds up others.

aiohttp reads requests and writes answers, and closes a connection over which no request comes in
time. What it does not bound is bounded here, before it sees the connection: how many there are,
over all and of one peer; how long a TLS handshake takes; how long an answer may stay unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import structlog
from aiohttp import hdrs, web

from cacheagent.api.connection import Connection
from cacheagent.api.httplog import HttpLogger
from cacheagent.sync.seats import Seats

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from cacheagent.api.peer import Peer
    from cacheagent.configtypes import HostPort
    from cacheagent.metrics import Metrics
    from cacheagent.sync.precedence import Precedence, Turn

MAX_LINE = 8190
"""Bytes of a request line, and of a header: longer ones are no HTTP to us, and answered by 400."""

MAX_FIELDS = 64
"""Header fields of one request: more are answered by 400."""

STOP_SECONDS = 30.0
"""How long a request that is under way may take to end when the daemon stops."""

LINGER_SECONDS = 5.0
"""How long a body is read, and thrown away, that nobody wanted; then the connection is closed."""

BACKLOG = 512
"""Connections that the kernel holds until they are accepted: a scheduler may begin many at once."""

NAME = "cacheagent"
"""What each answer calls the server: versions would tell a stranger which flaws to try."""

_log = structlog.get_logger(__name__)


async def _name(_request: web.Request, response: web.StreamResponse) -> None:
    """Take the place of the name that aiohttp gives itself."""
    response.headers[hdrs.SERVER] = NAME


class _Requests(web.RequestHandler):
    """Reads the requests of one connection; what is no HTTP it answers itself.

    From its first byte to its answer, one that makes something goes before downloads.
    """

    __slots__ = ("_precedence", "_turn")

    def __init__(self, server: web.Server, precedence: Precedence, **options: Any) -> None:  # noqa: ANN401 -- aiohttp's own
        super().__init__(server, **options)
        self._precedence = precedence
        self._turn: Turn | None = None

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._turn is None and data.startswith(b"PUT "):
            self._turn = self._precedence.begin()
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._rest()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody waits any more."""
        self._rest()
        super().connection_lost(exc)

    def _rest(self) -> None:
        if self._turn is not None:
            self._turn.end()
            self._turn = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Give an answer that names no more than any other."""
        response = super().handle_error(request, status, exc, message)
        response.headers[hdrs.SERVER] = NAME
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one server puts up with; times are seconds.

    ``connections`` are open at once. One peer has at most three quarters of them, and neither all
    who come over TCP nor all who come over the Unix socket have more than seven eighths. A request
    has to be there, up to the end of its header, ``idle`` after the connection was opened or the
    answer before it was given; a TLS handshake ends within ``handshake``; of an answer something
    is taken within each ``unread``.
    """

    connections: int
    idle: float = 60.0
    handshake: float = 10.0
    unread: float = 30.0


class HttpServer:
    """An application, and the sockets over which it is reached."""

    def __init__(
        self, runner: web.AppRunner, bounds: Bounds, metrics: Metrics, precedence: Precedence
    ) -> None:
        """Take a runner that is set up; ``start`` does that."""
        self._precedence = precedence
        self._runner = runner
        self._bounds = bounds
        self._metrics = metrics
        each, way = bounds.connections * 3 // 4, bounds.connections * 7 // 8
        self._seats = Seats(bounds.connections, max(1, each))
        # Strangers are many, and the one scheduler of this host is not to wait for them.
        self._ways = Seats(bounds.connections, max(1, way))
        self._refused = 0
        self._open: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping = asyncio.ensure_future(self._sweep())

    @classmethod
    async def start(
        cls, app: web.Application, bounds: Bounds, metrics: Metrics, precedence: Precedence
    ) -> Self:
        """Make an application ready to be reached; whoever goes away cancels what was asked for."""
        app.on_response_prepare.append(_name)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        return cls(runner, bounds, metrics, precedence)

    async def listen(
        self, where: socket.socket | HostPort, tls: Callable[[], ssl.SSLContext | None]
    ) -> list[Any]:
        """Serve there, and give the addresses; ``tls`` is asked anew for each connection.

        Raises: ``OSError`` where nobody can listen there.
        """
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(self, tls())

        at: dict[str, Any] = (
            {"sock": where}
            if isinstance(where, socket.socket)
            else {"host": where.host, "port": where.port}
        )
        server = await loop.create_server(connect, backlog=BACKLOG, **at)
        self._servers.append(server)
        return [sock.getsockname() for sock in server.sockets]

    @property
    def addresses(self) -> list[Any]:
        """Tell where it is reached, as ``socket.getsockname`` does."""
        return [sock.getsockname() for server in self._servers for sock in server.sockets]

    @property
    def bounds(self) -> Bounds:
        """What this server puts up with."""
        return self._bounds

    async def close(self) -> None:
        """Listen no more, let requests that are under way end, and close every connection."""
        for server in self._servers:
            server.close()
        for connection in list(self._open):
            connection.stop()
        try:
            await self._runner.cleanup()
        finally:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping

    def enter(self, connection: Connection, who: Peer) -> bool:
        """Count a connection of the peer, or tell that there are too many."""
        if not self._sit(who):
            self._refused += 1
            self.dropped("full")
            return False
        self._open.add(connection)
        self._metrics.connections.inc()
        return True

    def _sit(self, who: Peer) -> bool:
        if not self._seats.take(who.name):
            return False
        if self._ways.take(who.way):
            return True
        self._seats.give(who.name)
        return False

    def leave(self, connection: Connection, who: Peer) -> None:
        """Count a connection no more."""
        self._open.discard(connection)
        self._seats.give(who.name)
        self._ways.give(who.way)
        self._metrics.connections.dec()

    def dropped(self, reason: str) -> None:
        """Count a connection that was closed without its peer's doing."""
        self._metrics.connections_dropped_total.labels(reason=reason).inc()

    def protocol(self) -> asyncio.Protocol:
        """Give what reads the requests of one connection."""
        server = self._runner.server
        assert server is not None  # noqa: S101 -- it is None only behind cleanup(), when nobody connects
        # A dictionary: aiohttp takes no log and an adapter of one, and its types do not say so.
        options: dict[str, Any] = {
            "access_log": None,
            "logger": HttpLogger(),
            "max_line_size": MAX_LINE,
            "max_field_size": MAX_LINE,
            "max_headers": MAX_FIELDS,
            "keepalive_timeout": self._bounds.idle,
            "lingering_time": LINGER_SECONDS,
            # What a body would grow to is nobody's business: an encoded one is refused.
            "auto_decompress": False,
        }
        loop = asyncio.get_running_loop()
        return _Requests(server, self._precedence, loop=loop, **options)

    async def _sweep(self) -> None:
        """Look again and again who does not read; tell of refusals together, not one by one."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._bounds.unread / 3)
            for connection in list(self._open):
                connection.drop_if_unread(loop.time())
            if self._refused:
                _log.warning("too many connections", refused=self._refused, open=len(self._open))
                self._refused = 0
