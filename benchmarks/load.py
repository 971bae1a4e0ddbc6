"""Requests to a daemon over its Unix socket, by a client that costs next to nothing.

It shares the cores with the daemon. So it speaks HTTP/1.1 by hand: requests are bytes that were
made beforehand, and of an answer it looks at no more than status and length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.figures import middle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class AnswerError(Exception):
    """The daemon answered with a problem."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long each of some requests took, and all of them together, in seconds."""

    each: Sequence[float]
    wall: float

    @property
    def median(self) -> float:
        """The median, in milliseconds."""
        return middle(self.each) * 1e3

    @property
    def p99(self) -> float:
        """What 99 of 100 do not exceed, in milliseconds."""
        return sorted(self.each)[int(len(self.each) * 0.99)] * 1e3

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.each) / self.wall


class Connection(asyncio.Protocol):
    """One connection that is kept; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 -- a fact for mypy
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the daemon closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer; the last one ends the wait."""
        self._buffer += data
        head, found, body = self._buffer.partition(_END)
        if not found or len(body) < _length(head):
            return
        self._buffer = b""
        if self._answer is None or self._answer.done():
            return
        if head[9:10] == b"2":
            self._answer.set_result(body)
        else:
            self._answer.set_exception(AnswerError(self._told(head, body)))

    @staticmethod
    def _told(head: bytes, body: bytes) -> str:
        status = head.split(b"\r", 1)[0].decode()
        return f"{status}: {body.decode()}"

    async def ask(self, request: bytes) -> bytes:
        """Send a request, and give the body of the answer.

        Raises: ``AnswerError`` where it is a problem; ``OSError`` where none comes.
        """
        if self._transport is None:
            raise ConnectionError("there is no connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


def _length(head: bytes) -> int:
    lower = head.lower()
    place = lower.find(_LENGTH)
    return int(lower[place + len(_LENGTH) :].split(b"\r", 1)[0]) if place >= 0 else 0


@contextlib.asynccontextmanager
async def connected(path: str) -> AsyncIterator[Connection]:
    """Give a connection to the daemon."""
    plain = socket.socket(socket.AF_UNIX)
    # Where many come at once, one that does not block fails (connect(2), EAGAIN); asyncio would
    # wait for ever.
    plain.connect(path)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(Connection, sock=plain)
    try:
        yield connection
    finally:
        connection.close()


def request(method: str, path: str, body: object = None) -> bytes:
    """Write a request."""
    data = b"" if body is None else json.dumps(body).encode()
    kind = "" if body is None else "Content-Type: application/json\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: agent\r\n{kind}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def disk_of(image_id: str) -> bytes:
    """Ask for the root disk of a new instance."""
    return request("PUT", f"/v1/instances/{uuid.uuid4()}/disks/root", {"image_id": image_id})


def image_of(image_id: str) -> bytes:
    """Ask for an image, and wait until it is ready."""
    return request("PUT", f"/v1/images/{image_id}", {"wait": True})


async def storm(path: str, requests: Sequence[bytes], clients: int) -> Times:
    """Send all requests by so many clients, each on a connection that it keeps."""
    left, each = iter(requests), list[float]()
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(path)) for _ in range(clients)]
        begun = time.perf_counter()
        await asyncio.gather(*(_work(connection, left, each) for connection in connections))
        return Times(each, time.perf_counter() - begun)


async def _work(connection: Connection, left: Iterator[bytes], each: list[float]) -> None:
    for asked in left:
        begun = time.perf_counter()
        await connection.ask(asked)
        each.append(time.perf_counter() - begun)


async def ask(path: str, asked: bytes) -> bytes:
    """Send one request on a connection of its own."""
    async with connected(path) as connection:
        return await connection.ask(asked)
