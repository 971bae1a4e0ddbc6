"""Who may ask, and when: what stands before every handler."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from cacheagent.api import reading
from cacheagent.errors import BearerError, ShuttingDownError, UnauthenticatedError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from cacheagent.api.services import StatusService

API_PREFIX = "/v1/"
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""What needs no bearer token: none of it tells anything about images or instances."""

_DIGEST = r"[0-9a-f]{64}"


def parse_digests(text: str) -> frozenset[bytes]:
    """Read a token file: the SHA-256 of one token a line, as 64 hex digits.

    Empty lines and lines that begin with ``#`` say nothing. Raises: ``ValueError`` with the
    number of the first line that is no digest; what the line holds is not repeated, for it may
    be a token by mistake.
    """
    digests = set()
    for number, line in enumerate(text.splitlines(), start=1):
        digits = line.strip().lower()
        if not digits or digits.startswith("#"):
            continue
        if not re.fullmatch(_DIGEST, digits):
            raise ValueError(f"line {number} is not the SHA-256 of a token in hex")
        digests.add(bytes.fromhex(digits))
    return frozenset(digests)


def bearer_guard(digests: frozenset[bytes]) -> Middleware:
    """Ask every connection over TCP for a bearer token whose SHA-256 is among ``digests``.

    The Unix socket has the permissions of its file instead. An empty set lets nobody in.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        needed = request.path not in OPEN_PATHS and not _is_unix(request)
        if needed and not _bears_one_of(digests, request):
            raise BearerError("a bearer token of this daemon is needed over TCP")
        return await handler(request)

    return check


def _is_unix(request: web.Request) -> bool:
    """Tell whether the request came over a Unix socket; a connection that is gone did not."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX


def _bears_one_of(digests: frozenset[bytes], request: web.Request) -> bool:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
    # Every digest is compared: the time must not tell which one came close.
    matches = [hmac.compare_digest(given, digest) for digest in digests]
    return scheme.lower() == "bearer" and any(matches)


def api_guard(status: StatusService, *, require_token: bool) -> Middleware:
    """Refuse requests to the API while the daemon stops, or without a token where one is needed.

    What no path of the API takes is refused as well: a token that cannot be one, parameters of
    the query string.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(API_PREFIX):
            if status.stopping:
                raise ShuttingDownError("the daemon is stopping")
            if reading.caller(request).token is None and require_token:
                raise UnauthenticatedError(f"{reading.TOKEN_HEADER} is needed here")
            reading.refuse_query(request)
        return await handler(request)

    return check
