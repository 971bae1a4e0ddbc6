"""The HTTP sessions of the client: for questions and for downloads, so that neither waits."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import aiohttp

from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheagent.backends.glance.channel import GlanceSettings

READ_BUFFER = 256 << 10
"""Bytes that aiohttp holds of a body before it stops reading from the socket; it may double."""

QUESTIONS = 100
"""Connections for answers without data: who asks beyond them waits for one to be free."""


class Sessions:
    """Sends GETs, and bounds how long they take and how many there are."""

    def __init__(self, settings: GlanceSettings) -> None:
        self._settings = settings
        self._questions: aiohttp.ClientSession | None = None
        self._downloads: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Make ready, without any request; ``ConfigError`` where ``ca_file`` cannot be used."""
        ca_file = self._settings.ca_file
        context = None if ca_file is None else await asyncio.to_thread(_trust, ca_file)
        self._questions = _session(context, QUESTIONS)
        # Their callers bound how many there are; a crowd that asks takes none of their connections.
        self._downloads = _session(context, 0)

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._questions, self._downloads):
            if session is not None:
                await session.close()
        self._questions = self._downloads = None

    async def get(
        self, url: str, headers: Mapping[str, str], *, data: bool
    ) -> aiohttp.ClientResponse:
        """Give an answer that has begun; one without ``data`` has to end in time as well.

        Raises: ``aiohttp.ClientError`` or ``OSError`` where none comes.
        """
        session = self._downloads if data else self._questions
        if session is None:
            raise RuntimeError("Glance is used before start or after close")
        connect, stall = self._settings.connect_timeout, self._settings.stall_timeout
        patience = aiohttp.ClientTimeout(
            # Who sends metadata byte by byte is never silent.
            total=None if data else connect + stall,
            sock_connect=connect,
            sock_read=stall,
        )
        # Nor is who sends a header so.
        async with asyncio.timeout(connect + stall):
            # aiohttp would send X-Auth-Token on to whatever origin a redirect names.
            return await session.get(url, headers=headers, allow_redirects=False, timeout=patience)


def _session(context: ssl.SSLContext | None, connections: int) -> aiohttp.ClientSession:
    """Make a session that trusts as told, of at most so many connections; 0 = any number."""
    trust = True if context is None else context
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust, limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "cacheagent", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_BUFFER,
    )


def _trust(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"glance.ca_file: {ca_file} cannot be used: {error}") from error
