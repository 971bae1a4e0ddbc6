"""Where the API is reached: a Unix socket, and TCP with TLS where it leaves this machine."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING

from aiohttp import web

from cacheagent.api.guards import parse_digests
from cacheagent.api.httplog import HttpLogger
from cacheagent.configtypes import HostPort
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheagent.config import ApiConfig

MAX_LINE = 8190
"""Bytes of a request line, and of a header: longer ones are no HTTP to us, and answered by 400."""

STOP_SECONDS = 30.0
"""How long a request that is under way may take to end when the daemon stops."""


async def start(app: web.Application) -> web.AppRunner:
    """Make an application ready to be reached; whoever goes away cancels what was asked for."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=HttpLogger(),
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
        shutdown_timeout=STOP_SECONDS,
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
    except OSError as error:
        raise ConfigError(f"api.socket: {config.socket}: {error.strerror or error}") from error
    await web.SockSite(runner, listener).start()


async def listen_passed(
    runner: web.AppRunner,
    listener: socket.socket,
    config: ApiConfig,
    tls: ssl.SSLContext | None,
) -> None:
    """Serve on a socket that the service manager opened; under TLS where it is one of TCP.

    Raises:
        ConfigError: it can be reached as ``api.listen`` may not be, or is no such socket.

    """
    if listener.family == socket.AF_UNIX:
        await web.SockSite(runner, listener).start()
        return
    try:
        config.check_guarded(_address(listener), "the passed socket")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    await web.SockSite(runner, listener, ssl_context=tls).start()


def _address(listener: socket.socket) -> HostPort:
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        raise ValueError(f"the passed socket is of {listener.family.name}, not Unix nor TCP")
    host, port = listener.getsockname()[:2]
    return HostPort(host, port)


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


def addresses(runner: web.AppRunner, tls: ssl.SSLContext | None = None) -> list[str]:
    """Tell where the application is reached: by the path of a Unix socket, or a URL of TCP."""
    scheme = "http" if tls is None else "https"
    return [
        f"{scheme}://{HostPort(*address[:2])}" if isinstance(address, tuple) else str(address)
        for address in runner.addresses
    ]


async def check(config: ApiConfig) -> None:
    """Find what the configuration names, and listen nowhere.

    Raises:
        ConfigError: a group or a file is not there, or cannot be used.

    """
    await asyncio.to_thread(_socket_group, config)
    await tls_context(config)
    await bearer_digests(config)


async def tls_context(config: ApiConfig) -> ssl.SSLContext | None:
    """Load certificate and key, and demand a client's certificate where an authority is given.

    Raises:
        ConfigError: a file cannot be used.

    """
    if config.tls_cert is None:
        return None
    return await asyncio.to_thread(_load_tls, config, config.tls_cert)


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
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"api.token_file: {config.token_file}: {why}") from error


def _load_tls(config: ApiConfig, certificate: Path) -> ssl.SSLContext:
    with _telling("api.tls_client_ca", config.tls_client_ca):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _telling("api.tls_cert, api.tls_key", certificate, config.tls_key):
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, config.tls_key, password="")
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _telling(keys: str, *files: Path | None) -> Iterator[None]:
    """Name the keys and files of the configuration that OpenSSL complains of."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        named = ", ".join(str(file) for file in files if file is not None)
        raise ConfigError(f"{keys}: {named}: {error.strerror or error}") from error


def _bind_unix(config: ApiConfig) -> socket.socket:
    path = config.socket
    group = _socket_group(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before it listens, so mode and group come in time.
        listener.bind(str(path))
        os.chown(path, -1, group)
        path.chmod(config.socket_mode)
    except BaseException:
        listener.close()
        raise
    return listener


def _socket_group(config: ApiConfig) -> int:
    """Give the group of the Unix socket; -1 = that of the daemon, as for chown(2)."""
    name = config.socket_group
    try:
        return -1 if name is None else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"api.socket_group: there is no group {name!r}") from None


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
