"""One connection: counted before a byte of it is read, and closed where nobody reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cacheagent.api.peer import Peer

if TYPE_CHECKING:
    import ssl

    from cacheagent.api.server import HttpServer


class Connection(asyncio.Protocol):
    """Stands between the socket and what reads the requests.

    TLS begins behind the count: whoever opens a connection and says nothing is counted as well.
    """

    def __init__(self, server: HttpServer, tls: ssl.SSLContext | None) -> None:
        self._server = server
        self._tls = tls
        self._peer: Peer | None = None
        self._transport: asyncio.Transport | None = None
        self._http: asyncio.Protocol | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""
        self._pending = 0
        self._taken = False
        self._taken_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or close it at once."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- for mypy: asyncio promises less than it gives
        who = Peer.of(transport)
        if not self._server.enter(self, who):
            transport.abort()
            return
        self._peer, self._transport = who, transport
        if self._tls is None:
            self._begin(transport)
            return
        transport.pause_reading()
        self._handshake = asyncio.ensure_future(self._shake_hands(transport, self._tls))

    async def _shake_hands(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._server.bounds.handshake
        try:
            secured = await loop.start_tls(
                raw, self, tls, server_side=True, ssl_handshake_timeout=seconds
            )
        except OSError:  # ssl.SSLError and a handshake that takes too long are such
            secured = None
            self._server.dropped("handshake")
        # Nothing comes where the peer went away meanwhile.
        if secured is not None:
            self._begin(secured)
            return
        raw.abort()
        self._leave()

    def _begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._taken_at = asyncio.get_running_loop().time()
        self._http = self._server.protocol()
        self._http.connection_made(transport)
        if self._early:
            self._http.data_received(self._early)
            self._early = b""

    def data_received(self, data: bytes) -> None:
        """Hand on what came; TLS gives the first of it before it says that it is ready."""
        if self._http is None:
            self._early += data
        else:
            self._http.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on that nothing more comes."""
        return None if self._http is None else self._http.eof_received()

    def pause_writing(self) -> None:
        """Hand on that the peer does not read as fast as it is written to."""
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that the peer has read."""
        self._taken = True
        if self._http is not None:
            self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on that it is over, and make room for another one."""
        self._leave()
        if self._http is not None:
            self._http.connection_lost(exc)

    def stop(self) -> None:
        """Give up where the peer has not begun to speak TLS; what has begun ends by itself."""
        if self._http is None and self._handshake is not None:
            self._handshake.cancel()
            if self._transport is not None:
                self._transport.abort()
            self._leave()

    def drop_if_unread(self, now: float) -> None:
        """Close it where the peer has taken nothing for long of what waits to be sent."""
        if self._http is None or self._transport is None:
            return
        pending = self._transport.get_write_buffer_size()
        # What was read may have been written again since: a stream fills its buffer as it empties.
        if not pending or pending < self._pending or self._taken:
            self._taken_at = now
        self._pending, self._taken = pending, False
        if now - self._taken_at >= self._server.bounds.unread:
            self._server.dropped("unread")
            self._transport.abort()

    def _leave(self) -> None:
        if self._peer is not None:
            self._server.leave(self, self._peer)
            self._peer = None
