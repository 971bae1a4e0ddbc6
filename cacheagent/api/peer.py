"""Who is at the other end of a connection, as far as the kernel knows."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import asyncio

_UCRED = struct.Struct("3i")
"""``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED)."""

_SITE_PREFIX = 64
"""Bits of an IPv6 address that one host does not choose at will (RFC 4291, section 2.5.4)."""

NOBODY = "nobody"
"""The name of a peer that has gone."""


@dataclass(frozen=True, slots=True)
class Peer:
    """As whom a connection is counted: by its ``name``, and with all who come the same ``way``."""

    name: str
    way: str

    @classmethod
    def of(cls, transport: asyncio.BaseTransport | None) -> Self:
        """Look at the other end of a connection."""
        return cls(name(transport), "unix" if is_unix(transport) else "tcp")


def is_unix(transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether the connection is one of a Unix socket; one that is gone is not."""
    sock = _socket(transport)
    return sock is not None and sock.family == socket.AF_UNIX


def name(transport: asyncio.BaseTransport | None) -> str:
    """Name who is to be counted as one: a user of this host, an IPv4 address, an IPv6 network."""
    sock = _socket(transport)
    if sock is None:
        return NOBODY
    try:
        if sock.family == socket.AF_UNIX:
            return f"uid {_uid(sock)}"
        return of_address(sock.getpeername()[0])
    except OSError:
        return NOBODY


def is_operator(transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether root or the daemon's own user speaks over a Unix socket."""
    sock = _socket(transport)
    if sock is None or sock.family != socket.AF_UNIX:
        return False
    try:
        return _uid(sock) in {0, os.geteuid()}
    except OSError:
        return False


def of_address(text: str) -> str:
    """Name the peer behind an address of IPv4 or IPv6."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _SITE_PREFIX), strict=False))


def _uid(sock: socket.socket) -> int:
    cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(cred)[1]
    return uid


def _socket(transport: asyncio.BaseTransport | None) -> socket.socket | None:
    return None if transport is None else transport.get_extra_info("socket")
