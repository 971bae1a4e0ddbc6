"""Whether a request has a form that clients of ours send: no other one is guessed at.

What two readers could understand in two ways is how requests are smuggled past a proxy, and a page
in a browser of this host reaches loopback as any program does. aiohttp refuses what is no HTTP;
here goes what is, and is nothing that we want.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web

from cacheagent.api import peer
from cacheagent.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.typedefs import Handler

MAX_HEADER = 32 * 1024
"""Bytes of all header fields of a request together, names and values."""

_VERSIONS = frozenset({HttpVersion10, HttpVersion11})


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request of another form; everything that is wrong with it is told at once."""
    if problems := list(_problems(request)):
        raise InvalidRequestError(problems)
    return await handler(request)


def _problems(request: web.Request) -> Iterator[tuple[str, str]]:
    if request.version not in _VERSIONS:
        yield "version", "is neither HTTP/1.0 nor HTTP/1.1"
    # Not the absolute form, whose host is not that of the header, nor what has a fragment.
    if not request.raw_path.startswith("/") or "#" in request.raw_path:
        yield "path", "does not begin with a slash, or has a fragment"
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEADER:
        yield "header", f"is longer than {MAX_HEADER // 1024} KiB"
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        yield hdrs.CONTENT_ENCODING, "is not known here"
    yield from _of_a_page(request)


def _of_a_page(request: web.Request) -> Iterator[tuple[str, str]]:
    """Find what a page of another site sends, by itself or by a name that it has rebound."""
    host = request.headers.get(hdrs.HOST, "")
    for origin in request.headers.getall(hdrs.ORIGIN, []):
        if not host or origin.partition("://")[2].lower() != host.lower():
            yield hdrs.ORIGIN, "is that of another site"
    plain_tcp = not request.secure and not peer.is_unix(request.transport)
    # With TLS the certificate says which names are ours.
    if plain_tcp and host and not _is_this_machine(host):
        yield hdrs.HOST, "is neither an IP address nor localhost"


def _is_this_machine(host: str) -> bool:
    """Tell whether nobody else can have given the name: it is an address, or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
