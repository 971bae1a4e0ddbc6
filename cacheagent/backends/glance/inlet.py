"""The body of an answer, received straight into memory that the caller gives.

aiohttp copies what it reads three times before a caller has it, and holds megabytes of it for each
answer. So once it has read the headers, and where the length of the body stands there, the
transport of asyncio is given another protocol: one that lends it the caller's memory
(``asyncio.BufferedProtocol``). Connecting, TLS, the request and the headers stay aiohttp's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE: Final = 256 << 10
"""Bytes that one turn of the loop reads at most: others wait for as long as copying them takes."""


class Inlet(asyncio.BufferedProtocol):
    """Receives the ``length`` bytes that are left of a body. ``stall``: seconds of silence.

    ``on_lost`` is told what ``connection_lost`` is.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        length: int,
        stall: float,
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._transport = transport
        self._left = length
        self._stall = stall
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._room = memoryview(b"")
        self._received = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None
        self._is_lost = False

    async def receive(self, room: memoryview) -> int:
        """Receive into ``room``, which is not empty, and say how much; 0 at the end of the body.

        Afterwards nothing is written there any more.

        Raises: ``aiohttp.ClientError`` or ``OSError`` where the connection breaks or goes silent.
        """
        if not self._left:
            return 0
        if self._is_lost:
            raise self._lost or aiohttp.ClientPayloadError("the connection ended within the data")
        self._room, self._received = room[: min(self._left, AT_ONCE)], 0
        self._waiter = self._loop.create_future()
        self._transport.resume_reading()
        try:
            async with asyncio.timeout(self._stall):
                await self._waiter
        except TimeoutError:
            raise aiohttp.SocketTimeoutError("Timeout on reading data from socket") from None
        finally:
            self._rest()
        return self._received

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- the signature is asyncio's
        """Lend what is to be filled."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Have the bytes; no more are read before somebody asks for them."""
        self._received = nbytes
        self._left -= nbytes
        self._wake()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits, and aiohttp, whose connection it is."""
        self._is_lost = True
        self._lost = exc
        if self._waiter is not None and not self._waiter.done():
            error = exc or aiohttp.ClientPayloadError("the connection ended within the data")
            self._waiter.set_exception(error)
        self._on_lost(exc)

    def _wake(self) -> None:
        self._transport.pause_reading()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _rest(self) -> None:
        self._waiter = None
        self._room = memoryview(b"")
        self._transport.pause_reading()


def take_over(response: aiohttp.ClientResponse, stall: float) -> tuple[bytes, Inlet | None]:
    """Give what has come of a body and was not read yet, and an inlet for the rest.

    The inlet is None where the body has to be read as aiohttp gives it: there is no length to
    count, or it is all there, or so much of it that aiohttp has put some aside, or the server
    closes the connection behind it and that is one of TLS.
    """
    connection, content = response.connection, response.content
    length = response.content_length
    is_chunked = "Transfer-Encoding" in response.headers
    if connection is None or length is None or is_chunked or content.is_eof():
        return b"", None
    handler, transport = connection.protocol, cast("asyncio.Transport", connection.transport)
    if handler is None or not handler.is_connected() or not transport.is_reading():
        return b"", None
    # Once the server has closed it, TLS of asyncio fills one piece of memory and drops the rest.
    if transport.get_extra_info("sslcontext") is not None and _ends_with_body(response):
        return b"", None
    come = content.read_nowait()
    # This also ends the patience of aiohttp, which will see no data any more.
    handler.pause_reading()
    inlet = Inlet(transport, length - content.total_bytes, stall, handler.connection_lost)
    transport.set_protocol(inlet)
    return come, inlet


def _ends_with_body(response: aiohttp.ClientResponse) -> bool:
    """Tell whether the server closes the connection when it has sent the body (RFC 9112, 9.3)."""
    words = response.headers.get("Connection", "").lower()
    is_old = response.version == aiohttp.HttpVersion10
    return "close" in words or (is_old and "keep-alive" not in words)
