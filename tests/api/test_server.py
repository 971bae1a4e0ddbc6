"""Slow and greedy peers: each is bounded, and a quick one is served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, UnixConnector, web

from cacheagent.api import listen, reading
from cacheagent.api.app import create_app
from cacheagent.api.connection import Connection
from cacheagent.api.context import STREAMS
from cacheagent.api.credentials import Credentials
from cacheagent.api.server import Bounds, HttpServer
from cacheagent.config import ApiConfig
from cacheagent.configtypes import HostPort
from cacheagent.errors import ConfigError
from cacheagent.service.events import EventKind
from cacheagent.sync.precedence import Precedence
from tests.api.conftest import served
from tests.fakes.certificate import write_certificate
from tests.service.rig import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.metrics import Metrics
    from tests.fakes.services import FakeServices

SLOW = 50
HEAD = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n"
STATUS = HEAD + b"\r\n"
LARGE = 8 << 20
"""Bytes of an answer that no buffer of the kernel holds."""

WAITS = 30
"""Seconds after which a test gives up; none waits for it."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def both_ways(
    app: web.Application, tmp_path: Path, bounds: Bounds, metrics: Metrics
) -> AsyncIterator[dict[str, str | int]]:
    """Serve ``app`` on a Unix socket and on TCP; give the path and the port."""
    server = await HttpServer.start(app, bounds, metrics, Precedence())
    try:
        path = tmp_path / "api.sock"
        await listen.listen_unix(server, ApiConfig(socket=path))
        port = await listen.listen_tcp(server, HostPort("127.0.0.1", 0), "api.listen")
        yield {"unix": str(path), "tcp": port}
    finally:
        await server.close()


async def connect(where: str | int) -> Stream:
    """Connect to the path of a socket, or to a port of the loopback."""
    if isinstance(where, str):
        return await asyncio.open_unix_connection(where)
    return await asyncio.open_connection("127.0.0.1", where)


async def ended(stream: Stream) -> bytes:
    """Give all that comes until the other side closes."""
    reader, _ = stream
    got = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(WAITS):
            while part := await reader.read(1 << 16):
                got += part
    await leave(stream)
    return got


async def leave(*streams: Stream) -> None:
    """Close connections, whatever the other side does."""
    for _, writer in streams:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def status(where: str | int) -> int:
    """Ask as a quick client does, over a connection of its own."""
    connector = UnixConnector(where) if isinstance(where, str) else None
    port = "" if isinstance(where, str) else f":{where}"
    async with ClientSession(connector=connector) as session:
        url = f"http://localhost{port}/v1/status"
        if connector is None:
            url = url.replace("localhost", "127.0.0.1")
        async with session.get(url) as answer:
            return answer.status


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """Read one metric."""
    return metrics.registry.get_sample_value(f"cacheagent_{name}", labels) or 0.0


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_who_dribbles_a_header_is_closed_and_holds_up_nobody(
    services: FakeServices, metrics: Metrics, tmp_path: Path, way: str
) -> None:
    """Fifty clients that never end their header go; one that asks is answered all the while."""
    app = create_app(services.bundle, metrics)
    bounds = Bounds(connections=100, idle=1.5)
    async with both_ways(app, tmp_path, bounds, metrics) as where:
        streams = [await connect(where[way]) for _ in range(SLOW)]
        dribbling = [asyncio.create_task(dribble(stream)) for stream in streams]
        assert await status(where[way]) == 200
        assert await asyncio.gather(*dribbling) == [b""] * SLOW
        assert await status(where[way]) == 200
        await until(lambda: count(metrics, "connections") == 0)


async def dribble(stream: Stream) -> bytes:
    """Send a header that has no end, a line whenever the loop turns, until it is closed."""
    _, writer = stream
    closed = asyncio.create_task(ended(stream))
    writer.write(HEAD)
    while not (await asyncio.wait({closed}, timeout=0.05))[0]:
        writer.write(b"X")
    return await closed


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_who_never_sends_the_body_is_told_and_closed(
    services: FakeServices,
    metrics: Metrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Fifty bodies that do not come are a 400 each; one that asks is answered meanwhile."""
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.5)
    monkeypatch.setattr("cacheagent.api.server.LINGER_SECONDS", 0.1)
    app = create_app(services.bundle, metrics)
    head = b"POST /v1/prune HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with both_ways(app, tmp_path, Bounds(connections=100), metrics) as where:
        streams = [await connect(where[way]) for _ in range(SLOW)]
        for _, writer in streams:
            writer.write(head + b'Content-Length: 60000\r\n\r\n{"dry_run"')
        assert await status(where[way]) == 200
        told = await asyncio.gather(*map(ended, streams))
    assert all(each.startswith(b"HTTP/1.1 400 ") for each in told)
    assert all(b"body: did not arrive within" in each for each in told)
    assert services.script.calls.count(("prune",)) == 0


@pytest.mark.parametrize("way", ["unix", "tcp"])
async def test_who_reads_no_answer_is_dropped(metrics: Metrics, tmp_path: Path, way: str) -> None:
    """Answers that nobody reads are given up; who reads gets the whole of a large one."""

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE))

    app = web.Application()
    app.router.add_get("/v1/status", large)
    bounds = Bounds(connections=100, unread=2.0)
    async with both_ways(app, tmp_path, bounds, metrics) as where:
        deaf = [raw(where[way]) for _ in range(SLOW // 5)]
        try:
            assert await status(where[way]) == 200
            await until(lambda: count(metrics, "connections_dropped_total", reason="unread") >= 10)
            await until(lambda: count(metrics, "connections") == 0)
        finally:
            for sock in deaf:
                sock.close()


@pytest.mark.parametrize("way", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("headers", "behind"),
    [(b"", STATUS * 1000), (b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"x" * 65536)],
    ids=["requests", "another protocol"],
)
async def test_what_is_sent_behind_a_request_is_not_kept(
    metrics: Metrics, tmp_path: Path, way: str, headers: bytes, behind: bytes
) -> None:
    """Who is not answered yet, and sends on for ever, is read no more; memory does not grow."""
    under_way, over = asyncio.Queue[asyncio.Transport](), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        assert isinstance(request.transport, asyncio.Transport)
        under_way.put_nowait(request.transport)
        await over.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/v1/status", wait)
    async with both_ways(app, tmp_path, Bounds(connections=16), metrics) as where:
        stream = await connect(where[way])
        stream[1].write(HEAD + headers + b"\r\n")
        transport = await under_way.get()
        sending = asyncio.create_task(send_on(stream[1], behind))
        await until(lambda: not transport.is_reading())
        sending.cancel()
        over.set()
        await leave(stream)


async def send_on(writer: asyncio.StreamWriter, what: bytes) -> None:
    """Send it again and again."""
    while True:
        writer.write(what)
        await writer.drain()


def raw(where: str | int) -> socket.socket:
    """Ask over a socket that nobody reads from."""
    if isinstance(where, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(where)
    else:
        sock = socket.create_connection(("127.0.0.1", where))
    sock.sendall(STATUS)
    return sock


async def test_who_does_not_follow_the_events_is_dropped(
    services: FakeServices, metrics: Metrics
) -> None:
    """A stream whose reader sleeps ends; nothing piles up for it."""
    app = create_app(services.bundle, metrics)
    async with served(app, Bounds(connections=8, unread=1.5), metrics) as url:
        sock = raw(int(url.rpartition(":")[2]))
        try:
            sock.sendall(STATUS.replace(b"/v1/status", b"/v1/events"))
            await until(lambda: len(app_streams(app)) == 1)
            while app_streams(app):
                services.following.events.emit(EventKind.PRUNE, name="x" * 4096)
                await asyncio.sleep(0)
            assert count(metrics, "connections_dropped_total", reason="unread") == 1
        finally:
            sock.close()


class Buffer(asyncio.Transport):
    """A transport of which each look finds more to be sent than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        """Give what waits."""
        self.looked += 1
        return 20_000 + self.looked

    def abort(self) -> None:
        """Remember it."""
        self.aborted = True

    def close(self) -> None:
        """Do nothing: nobody is there."""


@pytest.mark.parametrize("reads", [True, False])
async def test_who_reads_slowly_what_never_ends_is_not_dropped(
    metrics: Metrics, *, reads: bool
) -> None:
    """A buffer that is filled again between two looks is read from all the same."""
    server = await HttpServer.start(
        web.Application(), Bounds(connections=16, unread=3), metrics, Precedence()
    )
    transport, now = Buffer(), asyncio.get_running_loop().time()
    connection = Connection(server, None)
    connection.connection_made(transport)
    for second in range(10):
        if reads:
            connection.pause_writing()
            connection.resume_writing()
        connection.drop_if_unread(now + second)
    assert transport.aborted is not reads
    connection.connection_lost(None)
    await server.close()


def app_streams(app: web.Application) -> set[asyncio.Task[object]]:
    """Give the streams that run."""
    return app[STREAMS]


async def test_one_peer_never_has_all_connections(metrics: Metrics) -> None:
    """What is beyond three quarters is closed at once, and those who leave make room."""
    app = web.Application()
    async with served(app, Bounds(connections=16), metrics) as url:
        port = int(url.rpartition(":")[2])
        streams = [await connect(port) for _ in range(16)]
        await until(lambda: count(metrics, "connections_dropped_total", reason="full") == 4)
        assert count(metrics, "connections") == 12
        refused = [await ended(stream) for stream in streams[12:]]
        assert refused == [b""] * 4
        await leave(streams[0])
        await until(lambda: count(metrics, "connections") == 11)
        reader, writer = await connect(port)
        writer.write(STATUS)
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        await leave((reader, writer), *streams[1:12])


async def test_the_network_never_has_all_connections(
    services: FakeServices, metrics: Metrics, tmp_path: Path
) -> None:
    """However many strangers come over TCP together, the scheduler on the socket is served."""
    app = create_app(services.bundle, metrics)
    async with both_ways(app, tmp_path, Bounds(connections=16), metrics) as where:
        strangers = [
            await asyncio.open_connection("127.0.0.1", where["tcp"], local_addr=(host, 0))
            for host in ("127.0.0.2", "127.0.0.3")
            for _ in range(8)
        ]
        await until(lambda: count(metrics, "connections_dropped_total", reason="full") == 2)
        assert count(metrics, "connections") == 14
        assert await status(where["unix"]) == 200
        await leave(*strangers)


async def test_refusals_are_told_together(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever floods the daemon with connections does not flood its log."""
    async with served(web.Application(), Bounds(connections=16, unread=0.3), metrics) as url:
        port = int(url.rpartition(":")[2])
        streams = [await connect(port) for _ in range(40)]
        await until(lambda: count(metrics, "connections_dropped_total", reason="full") == 28)
        told = ""
        while "too many connections" not in told:
            await asyncio.sleep(0)
            told += capsys.readouterr().out
        await leave(*streams)
    assert "refused=" in told
    assert told.count("too many connections") <= 2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Write a certificate with its key."""
    write_certificate(tmp_path / "pem")
    return tmp_path / "pem"


@contextlib.asynccontextmanager
async def secured(
    config: ApiConfig, bounds: Bounds, metrics: Metrics, services: FakeServices
) -> AsyncIterator[tuple[int, Credentials]]:
    """Serve the API under TLS, and give its port."""
    credentials = await Credentials.load(config)
    app = create_app(services.bundle, metrics, bearers=credentials.bearers)
    server = await HttpServer.start(app, bounds, metrics, Precedence())
    try:
        where = HostPort("127.0.0.1", 0)
        yield await listen.listen_tcp(server, where, "x", credentials.tls), credentials
    finally:
        await server.close()


async def over_tls(port: int, trusted: Path, headers: dict[str, str] | None = None) -> int:
    """Ask under TLS, over a connection of its own."""
    context = ssl.create_default_context(cafile=trusted)
    async with (
        ClientSession() as session,
        session.get(f"https://127.0.0.1:{port}/v1/status", ssl=context, headers=headers) as answer,
    ):
        return answer.status


async def test_who_says_nothing_to_tls_is_counted_and_closed(
    services: FakeServices, metrics: Metrics, certificate: Path
) -> None:
    """Connections without a handshake take places like others, and not for long."""
    config = ApiConfig(tls_cert=certificate, tls_key=certificate)
    bounds = Bounds(connections=100, handshake=1.5)
    async with secured(config, bounds, metrics, services) as (port, _):
        streams = [await connect(port) for _ in range(SLOW)]
        await until(lambda: count(metrics, "connections") == SLOW)
        assert await over_tls(port, certificate) == 200
        assert await asyncio.gather(*map(ended, streams)) == [b""] * SLOW
        assert count(metrics, "connections_dropped_total", reason="handshake") == SLOW
        await until(lambda: count(metrics, "connections") == 0)


async def test_what_is_no_tls_and_who_leaves_early_free_their_places(
    services: FakeServices, metrics: Metrics, certificate: Path
) -> None:
    """However a handshake ends, nothing of it stays."""
    config = ApiConfig(tls_cert=certificate, tls_key=certificate)
    async with secured(config, Bounds(connections=16), metrics, services) as (port, _):
        talking, leaving = await connect(port), await connect(port)
        await until(lambda: count(metrics, "connections") == 2)
        talking[1].write(STATUS)
        await leave(leaving)
        await ended(talking)
        await until(lambda: count(metrics, "connections") == 0)
        assert await over_tls(port, certificate) == 200


async def test_a_handshake_does_not_hold_up_the_stop(
    services: FakeServices, metrics: Metrics, certificate: Path
) -> None:
    """Who never speaks is let go when the server closes."""
    config = ApiConfig(tls_cert=certificate, tls_key=certificate)
    async with secured(config, Bounds(connections=16), metrics, services) as (port, _):
        stream = await connect(port)
        await until(lambda: count(metrics, "connections") == 1)
    assert count(metrics, "connections") == 0
    assert await ended(stream) == b""


async def test_new_certificates_and_tokens_are_taken_over(
    services: FakeServices, metrics: Metrics, certificate: Path, tmp_path: Path
) -> None:
    """A renewed certificate counts for the next connection, a token for the next request."""
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"old").hexdigest())
    config = ApiConfig(tls_cert=certificate, tls_key=certificate, token_file=tokens)
    async with secured(config, Bounds(connections=16), metrics, services) as (port, credentials):
        old, new = ({"Authorization": f"Bearer {word}"} for word in ("old", "new"))
        assert await over_tls(port, certificate, old) == 200
        tokens.write_text(hashlib.sha256(b"new").hexdigest())
        before = tmp_path / "before"
        certificate.rename(before)
        write_certificate(certificate)
        await credentials.reload()
        assert await over_tls(port, certificate, old) == 401
        assert await over_tls(port, certificate, new) == 200
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await over_tls(port, before, new)


async def test_a_broken_file_changes_nothing(
    services: FakeServices, metrics: Metrics, certificate: Path, tmp_path: Path
) -> None:
    """Where the new tokens cannot be read, neither they nor the new certificate count."""
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"old").hexdigest())
    config = ApiConfig(tls_cert=certificate, tls_key=certificate, token_file=tokens)
    async with secured(config, Bounds(connections=16), metrics, services) as (port, credentials):
        before = tmp_path / "before"
        before.write_bytes(certificate.read_bytes())
        write_certificate(certificate)
        tokens.write_text("no digest")
        with pytest.raises(ConfigError, match=r"api\.token_file"):
            await credentials.reload()
        assert await over_tls(port, before, {"Authorization": "Bearer old"}) == 200


async def test_a_token_file_that_anybody_may_change_is_refused(tmp_path: Path) -> None:
    """Whoever could write to it could let himself in."""
    tokens = tmp_path / "tokens"
    tokens.write_text("")
    tokens.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody may write to it"):
        await Credentials.load(ApiConfig(token_file=tokens))
