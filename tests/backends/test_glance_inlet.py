"""The data of an image, received into the memory of whoever wants them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cacheagent.backends.glance import Glance, GlanceHooks, GlanceSettings
from cacheagent.backends.glance.channel import Answer
from cacheagent.backends.identity import NoIdentity
from cacheagent.model import Caller
from cacheagent.sync.backoff import Backoff
from tests.fakes import lying_glance as lies
from tests.fakes.certificate import write_certificate
from tests.fakes.lying_glance import LyingGlance
from tests.service.rig import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp.typedefs import Handler

NOBODY = Caller()
DATA = random.Random(3).randbytes(5 << 20)  # noqa: S311  the same at each run
ODD = 300_007
"""Bytes of a piece of memory that fits nothing."""


async def _at_once(_pause: float) -> None:
    return


@contextlib.asynccontextmanager
async def serving(data: Handler, certificate: Path | None = None) -> AsyncIterator[str]:
    """Serve one handler, under TLS where there is a certificate; give its URL."""
    app = web.Application()
    app.router.add_get("/", data)
    server = TestServer(app, scheme="http" if certificate is None else "https")
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    await server.start_server(ssl=context, access_log=None)
    yield str(server.make_url("/"))
    await server.close()


async def whole(_request: web.Request) -> web.StreamResponse:
    """Answer with all of it."""
    return web.Response(body=DATA)


async def read(answer: Answer) -> bytes:
    """Receive all of a body in memory of odd sizes."""
    received = bytearray()
    memory = memoryview(bytearray(ODD))
    while length := await answer.receive(memory):
        received += memory[:length]
    return bytes(received)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_what_comes_is_what_was_sent(tmp_path: Path, *, is_tls: bool) -> None:
    """Each byte comes once and in order, under TLS as without."""
    certificate = None
    trust: ssl.SSLContext | bool = True
    if is_tls:
        certificate = tmp_path / "certificate.pem"
        write_certificate(certificate)
        trust = ssl.create_default_context(cafile=certificate)
    async with serving(whole, certificate) as url, aiohttp.ClientSession() as session:
        response = await session.get(url, ssl=trust)
        async with Answer(response, 30, on_failure=lambda: None) as answer:
            assert await read(answer) == DATA


def _send_and_close(listening: socket.socket, certificate: Path, body: bytes, head: bytes) -> None:
    """Answer one request under TLS, and wait for nobody before the connection is closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
        connection.recv(64 << 10)
        connection.sendall(head % len(body) + body)
        connection.settimeout(0)
        # It says that it closes, and does not stay to hear whether the other side does.
        with contextlib.suppress(ssl.SSLError, OSError):
            connection.unwrap()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n",
    ],
)
async def test_a_server_that_closes_loses_nothing_that_it_sent(tmp_path: Path, head: bytes) -> None:
    """Under TLS the end of an image need not be asked for again, however slowly it is taken."""
    certificate = tmp_path / "certificate.pem"
    write_certificate(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    body = DATA[:600_000]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/"
        sending = asyncio.ensure_future(
            asyncio.to_thread(_send_and_close, listening, certificate, body, head)
        )
        async with aiohttp.ClientSession() as session:
            response = await session.get(url, ssl=trust)
            async with Answer(response, 30, on_failure=lambda: None) as answer:
                received = bytearray()
                memory = memoryview(bytearray(64 << 10))
                while length := await answer.receive(memory):
                    received += memory[:length]
                    # What comes meanwhile, TLS keeps for us.
                    await asyncio.sleep(0)
        await sending
    assert received == body


async def test_what_had_come_before_anybody_read_is_not_waited_for_again() -> None:
    """An answer that nobody could take in at first ends where it ends."""
    async with (
        serving(whole) as url,
        aiohttp.ClientSession(read_bufsize=64 << 10) as session,
    ):
        response = await session.get(url)
        connection = response.connection
        assert connection is not None
        assert isinstance(connection.transport, asyncio.Transport)
        transport = connection.transport
        await until(lambda: not transport.is_reading())
        async with Answer(response, 30, on_failure=lambda: None) as answer:
            assert await read(answer) == DATA


async def test_memory_that_was_given_up_is_not_written_to() -> None:
    """Whoever stops to wait may use his memory for something else."""
    gate = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
        await response.prepare(request)
        await response.write(DATA[:1])
        await gate.wait()
        await response.write(DATA[1:])
        return response

    async with serving(late) as url, aiohttp.ClientSession() as session:
        answer = Answer(await session.get(url), 30, on_failure=lambda: None)
        async with answer:
            memory = memoryview(bytearray(ODD))
            assert await answer.receive(memory) == 1
            waiting = asyncio.ensure_future(answer.receive(memory))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            gate.set()
            other = memoryview(bytearray(ODD))
            length = await answer.receive(other)
            assert other[:length] == DATA[1 : 1 + length]
            assert not any(memory[1:])


@pytest.mark.parametrize("lie", [lies.cut(3 << 20), lies.silence(3 << 20)])
async def test_a_download_that_breaks_goes_on_with_what_is_missing(lie: lies.Lie) -> None:
    """Nothing is lost and nothing comes twice, whether the connection ends or goes silent."""
    resumed: list[int] = []
    async with LyingGlance() as service:
        settings = GlanceSettings(stall_timeout=1.0, retries=5)
        hooks = GlanceHooks(on_resume=resumed.append)
        backoff = Backoff(pause=_at_once)
        async with Glance(
            settings, NoIdentity(service.url), hooks=hooks, backoff=backoff
        ) as glance:
            image = await glance.show(service.add(DATA), NOBODY)
            service.lie("data", lie)
            received = bytearray()
            stream = glance.stream(image, offset=0, caller=NOBODY)
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    received += piece
    assert received == DATA
    # Of what was cut, the end may be lost with the connection.
    assert resumed
    assert 0 < resumed[0] <= 3 << 20
