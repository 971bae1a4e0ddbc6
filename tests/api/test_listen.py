"""Where the API may be reached, whoever opened the socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, web

from cacheagent.api import listen, peer
from cacheagent.api.app import create_app
from cacheagent.api.credentials import Credentials
from cacheagent.api.httplog import HttpLogger
from cacheagent.api.server import Bounds, HttpServer
from cacheagent.config import ApiConfig
from cacheagent.configtypes import HostPort
from cacheagent.errors import ConfigError
from cacheagent.metrics import Metrics
from cacheagent.sync.precedence import Precedence
from tests.fakes.certificate import write_certificate
from tests.fakes.services import INSTANCE, FakeServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

BEARER = b"bearer-of-a-scheduler"
EVERYWHERE = "0.0.0.0"  # noqa: S104 -- it is bound, and nobody listens


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    """Give an application that knows no path."""
    started = await HttpServer.start(
        web.Application(), Bounds(connections=16), Metrics(), Precedence()
    )
    yield started
    await started.close()


@contextlib.contextmanager
def passed(family: socket.AddressFamily, host: str) -> Iterator[socket.socket]:
    """Bind a socket as the service manager would."""
    with socket.socket(family) as opened:
        opened.bind((host, 0))
        yield opened


@pytest.mark.parametrize("guards", [{}, {"tls_cert", "tls_key"}])
async def test_a_passed_socket_that_others_reach_needs_a_guard(
    server: HttpServer, tmp_path: Path, guards: set[str]
) -> None:
    """What systemd opens to the network is not served without TLS, nor without who may ask."""
    write_certificate(tmp_path / "pem")
    config = ApiConfig.model_validate(dict.fromkeys(guards, tmp_path / "pem"))
    tls = (await Credentials.load(config)).tls
    with (
        passed(socket.AF_INET, EVERYWHERE) as opened,
        pytest.raises(ConfigError, match=r"passed socket 0\.0\.0\.0:\d+ is not loopback: set"),
    ):
        await listen.listen_passed(server, opened, config, tls)
    assert server.addresses == []


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
async def test_a_passed_socket_of_the_loopback_is_served(
    server: HttpServer, family: socket.AddressFamily, host: str
) -> None:
    """What this machine alone reaches needs no guard, as with api.listen."""
    with passed(family, host) as opened:
        await listen.listen_passed(server, opened.dup(), ApiConfig(), listen.plain)
        (url,) = listen.addresses(server)
        async with ClientSession() as session, session.get(url) as answer:
            assert answer.status == 404


async def test_a_passed_socket_of_another_kind_is_refused(server: HttpServer) -> None:
    """What nobody has thought about is not served."""
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as opened,
        pytest.raises(ConfigError, match="AF_NETLINK, not Unix nor TCP"),
    ):
        await listen.listen_passed(server, opened, ApiConfig(), listen.plain)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Serve the API to those who know its bearer token, and give the port."""
    digests = frozenset({hashlib.sha256(BEARER).digest()})
    app = create_app(FakeServices().bundle, Metrics(), bearers=lambda: digests)
    server = await HttpServer.start(app, Bounds(connections=16), Metrics(), Precedence())
    yield await listen.listen_tcp(server, HostPort("127.0.0.1", 0), "api.listen")
    await server.close()


async def said(port: int, *parts: bytes) -> list[bytes]:
    """Send each part once there is an answer to the one before; give the answers' first lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = []
    for part in parts:
        writer.write(part)
        head = await reader.readuntil(b"\r\n\r\n")
        lines.append(head.partition(b"\r\n")[0])
    writer.close()
    return lines


@pytest.mark.parametrize(
    "sent",
    [
        b"s3cret\r\n\r\n",
        b"GET / HTTP/1.1\r\nAuthorization : s3cret\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Auth-Token: " + b"s3cret" * 2000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_one_quiet_line(
    port: int, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """A stranger's bytes are no error of ours, and do not get into the log."""
    with caplog.at_level(logging.DEBUG, "aiohttp.server"):
        assert await said(port, sent) == [b"HTTP/1.0 400 Bad Request"]
    (record,) = [each for each in caplog.records if each.name == "aiohttp.server"]
    assert record.levelno <= logging.INFO
    assert record.exc_info is None
    assert "127.0.0.1" in record.getMessage()
    assert "s3cret" not in caplog.text


async def test_an_error_of_the_server_keeps_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is not about a stranger's bytes is told in full."""
    HttpLogger().exception("broken", exc_info=ValueError("why"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ValueError: why" in caplog.text


async def test_nobody_is_asked_for_a_body_that_is_not_wanted(port: int) -> None:
    """Who waits with the body is told to go on only after the guards have let the request in."""
    body = b'{"size_bytes": 512}'
    head = (
        b"PUT /v1/instances/%b/disks/root HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    )
    head = head % INSTANCE.encode() + b"Content-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n" % len(body)
    assert await said(port, head + b"\r\n") == [b"HTTP/1.1 401 Unauthorized"]
    known = head + b"Authorization: Bearer " + BEARER + b"\r\n\r\n"
    assert await said(port, known, body) == [b"HTTP/1.1 100 Continue", b"HTTP/1.1 201 Created"]


async def test_an_expectation_that_nobody_knows_is_answered_like_none(port: int) -> None:
    """No header goes past the guards, and none is answered by somebody else."""
    head = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nExpect: wonders\r\n\r\n"
    assert await said(port, head) == [b"HTTP/1.1 401 Unauthorized"]


async def test_the_socket_has_its_mode_before_anybody_can_connect(
    server: HttpServer, tmp_path: Path
) -> None:
    """Mode and group are those of the configuration, and a restart finds them again."""
    path = tmp_path / "api.sock"
    await listen.listen_unix(server, ApiConfig(socket=path, socket_mode=0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_gid == os.getgid()


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o775, False)])
async def test_a_folder_that_everybody_may_write_to_holds_no_socket(
    server: HttpServer, tmp_path: Path, mode: int, *, refused: bool
) -> None:
    """Nobody puts a socket of his own in the place of the daemon's; the sticky bit is enough."""
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    config = ApiConfig(socket=folder / "api.sock")
    if not refused:
        await listen.listen_unix(server, config)
        return
    with pytest.raises(ConfigError, match=r"api\.socket: .*everybody may write to its folder"):
        await listen.listen_unix(server, config)
    assert list(folder.iterdir()) == []


async def test_a_link_in_the_place_of_the_socket_is_not_followed(
    server: HttpServer, tmp_path: Path
) -> None:
    """Neither the link nor what it leads to is touched."""
    target, path = tmp_path / "target", tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(target))
    mode = target.stat().st_mode
    path.symlink_to(target)
    with pytest.raises(ConfigError, match="something else than a socket"):
        await listen.listen_unix(server, ApiConfig(socket=path, socket_mode=0o600))
    assert path.readlink() == target
    assert target.stat().st_mode == mode


async def test_a_socket_that_a_dead_daemon_left_is_replaced(
    server: HttpServer, tmp_path: Path
) -> None:
    """A crash leaves a socket that refuses; the next start takes its place."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await listen.listen_unix(server, ApiConfig(socket=path))
    assert server.addresses == [str(path)]


async def test_a_daemon_that_hangs_does_not_hold_up_the_start(
    server: HttpServer, tmp_path: Path
) -> None:
    """A socket at which nobody accepts any more is that of another daemon, and is told at once."""
    path = tmp_path / "api.sock"
    with contextlib.ExitStack() as stack:
        hanging = stack.enter_context(socket.socket(socket.AF_UNIX))
        hanging.bind(str(path))
        hanging.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)  # noqa: FBT003 -- as the socket has it
                waiting.connect(str(path))
        with pytest.raises(ConfigError, match=r"api\.socket: .*another daemon has it, and hangs"):
            await listen.listen_unix(server, ApiConfig(socket=path))
    assert path.is_socket()


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_whoever_may_choose_an_address_is_counted_as_one(address: str, counted: str) -> None:
    """A host that has a whole network of IPv6 has one share, and not one for each address."""
    assert peer.of_address(address) == counted


def test_who_has_gone_is_nobody() -> None:
    """A connection that is closed already is counted, and has no address any more."""
    assert peer.name(None) == peer.NOBODY
