"""Where the API is reached: a Unix socket, and TCP with TLS where it leaves this machine."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING

from aiohttp import web

from cacheagent.api.guards import parse_digests
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.config import ApiConfig
    from cacheagent.configtypes import HostPort

STOP_SECONDS = 30.0
"""How long a request that is under way may take to end when the daemon stops."""


async def start(app: web.Application) -> web.AppRunner:
    """Make an application ready to be reached; whoever goes away cancels what was asked for."""
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=STOP_SECONDS
    )
    await runner.setup()
    return runner


async def listen_unix(runner: web.AppRunner, config: ApiConfig) -> None:
    """Serve on the Unix socket of the configuration, with its mode and group.

    Raises:
        ConfigError: the socket cannot be made, or another daemon answers on it.

    """
    try:
        listener = await asyncio.to_thread(_bind_unix, config)
    except (OSError, KeyError) as error:
        raise ConfigError(f"api.socket: {config.socket}: {error}") from error
    await web.SockSite(runner, listener).start()


async def listen_passed(runner: web.AppRunner, listener: socket.socket) -> None:
    """Serve on a socket that the service manager opened."""
    await web.SockSite(runner, listener).start()


async def listen_tcp(
    runner: web.AppRunner, where: HostPort, key: str, tls: ssl.SSLContext | None = None
) -> int:
    """Serve on TCP, and give the port: the system's choice where ``where`` has 0.

    Raises:
        ConfigError: that cannot be done; the message names ``key``.

    """
    site = web.TCPSite(runner, where.host, where.port, ssl_context=tls)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"{key}: {where}: {error.strerror or error}") from error
    port: int = runner.addresses[-1][1]
    return port


async def tls_context(config: ApiConfig) -> ssl.SSLContext | None:
    """Load certificate and key, and demand a client's certificate where an authority is given.

    Raises:
        ConfigError: a file cannot be used.

    """
    if config.tls_cert is None:
        return None
    try:
        return await asyncio.to_thread(_load_tls, config)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"api.tls_cert, api.tls_key, api.tls_client_ca: {error}") from error


async def bearer_digests(config: ApiConfig) -> frozenset[bytes] | None:
    """Read the digests of the bearer tokens that TCP demands; None where it demands none.

    Raises:
        ConfigError: the file cannot be used.

    """
    if config.token_file is None:
        return None
    try:
        text = await asyncio.to_thread(config.token_file.read_text, encoding="utf-8")
        return parse_digests(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"api.token_file: {config.token_file}: {error}") from error


def _load_tls(config: ApiConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.tls_cert is not None:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _bind_unix(config: ApiConfig) -> socket.socket:
    path = config.socket
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before it listens, so mode and group come in time.
        listener.bind(str(path))
        if config.socket_group is not None:
            os.chown(path, -1, grp.getgrnam(config.socket_group).gr_gid)
        path.chmod(config.socket_mode)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove what a daemon that died has left; a socket that answers, or no socket, stays."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError("there is something else than a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError("another daemon answers there")
