"""A program handed to the unit ``cacheagent-sandbox@``, which runs it in bubblewrap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

from cacheagent.errors import HostUnavailableError
from cacheagent.process import Completed, attend
from cacheagent.sandbox.bubblewrap import of_the_program
from cacheagent.sandbox.order import LONGEST_REPLY
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from cacheagent.sandbox.order import Order


async def run(
    address: Path, order: Order, *, on_stdout: Callable[[bytes], None] | None
) -> Completed:
    """Have a program run, as ``process.run_limited`` runs one itself.

    Raises: HostUnavailableError where nobody listens at ``address``, there is no such program,
    or somebody killed it; OSError where the unit takes nobody in, or the host has no descriptors.
    """
    async with contextlib.AsyncExitStack() as stack:
        connection = await _connect(stack, address)
        stdout, to_stdout = await _stream(stack)
        stderr, to_stderr = await _stream(stack)
        socket.send_fds(connection, [order.encode()], [to_stdout.fileno(), to_stderr.fileno()])
        to_stdout.close()
        to_stderr.close()
        ended = asyncio.ensure_future(_ended(connection))
        try:
            completed = await attend(stdout, stderr, asyncio.shield(ended), on_stdout)
        finally:
            await _end(connection, ended)
    return of_the_program(order.argv[0], completed)


async def _connect(stack: contextlib.AsyncExitStack, address: Path) -> socket.socket:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    connection.setblocking(False)  # noqa: FBT003 -- it takes no keyword
    try:
        await asyncio.get_running_loop().sock_connect(connection, str(address))
    except OSError as error:
        raise HostUnavailableError(f"{address}: {error.strerror or error}") from error
    return connection


async def _stream(stack: contextlib.AsyncExitStack) -> tuple[asyncio.StreamReader, FileIO]:
    """Make a pipe: the end that is read here, and the one to hand over."""
    here, there = os.pipe()
    writing = stack.enter_context(os.fdopen(there, "wb", buffering=0))
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(here, "rb", buffering=0)
    )
    stack.callback(transport.close)
    return reader, writing


async def _ended(connection: socket.socket) -> int:
    """Wait for the reply. Without one the unit was stopped, as it would be by SIGTERM."""
    try:
        reply = await asyncio.get_running_loop().sock_recv(connection, LONGEST_REPLY)
    except OSError:
        reply = b""
    return int(reply) if reply else -signal.SIGTERM


async def _end(connection: socket.socket, ended: asyncio.Future[int]) -> None:
    """Let go of the leash, and wait until the program has been killed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    await uninterrupted(ended)
