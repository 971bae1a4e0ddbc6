"""Where the API is reached: a Unix socket, and TCP with TLS where it leaves this machine."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from typing import TYPE_CHECKING

from cacheagent.api.credentials import Credentials
from cacheagent.configtypes import HostPort
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from cacheagent.api.server import HttpServer
    from cacheagent.config import ApiConfig

    Tls = Callable[[], ssl.SSLContext | None]
    """What a new connection over TCP is secured with; None = plain HTTP."""


def plain() -> None:
    """Give that a connection is not secured by TLS."""


async def listen_unix(server: HttpServer, config: ApiConfig) -> None:
    """Serve on the Unix socket of the configuration, with its mode and group.

    Raises:
        ConfigError: the socket cannot be made, or another daemon answers on it.

    """
    try:
        listener = await asyncio.to_thread(_bind_unix, config)
    except OSError as error:
        raise ConfigError(f"api.socket: {config.socket}: {error.strerror or error}") from error
    await server.listen(listener, plain)


async def listen_passed(
    server: HttpServer, listener: socket.socket, config: ApiConfig, tls: Tls
) -> None:
    """Serve on a socket that the service manager opened; under TLS where it is one of TCP.

    Raises:
        ConfigError: it can be reached as ``api.listen`` may not be, or is no such socket.

    """
    if listener.family == socket.AF_UNIX:
        await server.listen(listener, plain)
        return
    try:
        config.check_guarded(_address(listener), "the passed socket")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    await server.listen(listener, tls)


def _address(listener: socket.socket) -> HostPort:
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        raise ValueError(f"the passed socket is of {listener.family.name}, not Unix nor TCP")
    host, port = listener.getsockname()[:2]
    return HostPort(host, port)


async def listen_tcp(server: HttpServer, where: HostPort, key: str, tls: Tls = plain) -> int:
    """Serve on TCP, and give the port: the system's choice where ``where`` has 0.

    Raises:
        ConfigError: that cannot be done; the message names ``key``.

    """
    try:
        addresses = await server.listen(where, tls)
    except OSError as error:
        raise ConfigError(f"{key}: {where}: {error.strerror or error}") from error
    port: int = addresses[-1][1]
    return port


def addresses(server: HttpServer, tls: Tls = plain) -> list[str]:
    """Tell where the application is reached: by the path of a Unix socket, or a URL of TCP."""
    scheme = "http" if tls() is None else "https"
    return [
        f"{scheme}://{HostPort(*address[:2])}" if isinstance(address, tuple) else str(address)
        for address in server.addresses
    ]


async def check(config: ApiConfig) -> None:
    """Find what the configuration names, and listen nowhere.

    Raises:
        ConfigError: a group or a file is not there, or cannot be used.

    """
    await asyncio.to_thread(_socket_group, config)
    await Credentials.load(config)


def _bind_unix(config: ApiConfig) -> socket.socket:
    path = config.socket
    group = _socket_group(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_open_folder(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before it listens, so mode and group come in time. (A umask would be
        # that of all threads.)
        listener.bind(str(path))
        os.chown(path, -1, group)
        path.chmod(config.socket_mode)
    except BaseException:
        listener.close()
        raise
    return listener


def _refuse_open_folder(folder: Path) -> None:
    """Refuse a folder in which anybody could put another socket, or a link, in the place of ours.

    In one with the sticky bit, as /tmp, nobody can.
    """
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise PermissionError("everybody may write to its folder")


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
        # Where nobody accepts any more, a connection would be waited for without end.
        probe.setblocking(False)  # noqa: FBT003 -- as the socket has it
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            raise FileExistsError("another daemon has it, and hangs") from None
    raise FileExistsError("another daemon answers there")
