"""Who may ask, and when: what stands before every handler."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from cacheagent.api import peer, reading
from cacheagent.errors import (
    BearerError,
    ShuttingDownError,
    TooManyRequestsError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aiohttp.typedefs import Handler, Middleware

    from cacheagent.api.services import AccessService, StatusService
    from cacheagent.sync.rates import Rates

API_PREFIX = "/v1/"
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""What needs no bearer token: none of it tells anything about images or instances."""

UNCOUNTED_PATHS = frozenset({"/healthz", "/readyz"})
"""What may be asked for at any rate."""

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


def bearer_guard(digests: Callable[[], frozenset[bytes] | None]) -> Middleware:
    """Ask every connection over TCP for a bearer token whose SHA-256 is among ``digests``.

    They are asked for anew with each request. The Unix socket has the permissions of its file
    instead. An empty set lets nobody in; None asks for no token.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        known = digests()
        needed = request.path not in OPEN_PATHS and not peer.is_unix(request.transport)
        if known is not None and needed and not _bears_one_of(known, request):
            raise BearerError("a bearer token of this daemon is needed over TCP")
        return await handler(request)

    return check


def _bears_one_of(digests: frozenset[bytes], request: web.Request) -> bool:
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
    # Every digest is compared: the time must not tell which one came close.
    matches = [hmac.compare_digest(given, digest) for digest in digests]
    return scheme.lower() == "bearer" and any(matches)


def rate_guard(rates: Rates) -> Middleware:
    """Refuse requests of a peer that asks more often than ``rates`` allow.

    Whether the daemon is alive is told to everybody.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in UNCOUNTED_PATHS:
            now = asyncio.get_running_loop().time()
            wait = rates.take(peer.name(request.transport), now)
            if wait:
                raise TooManyRequestsError(
                    "this caller asks too often", retry_after=math.ceil(wait)
                )
        return await handler(request)

    return check


def api_guard(
    status: StatusService,
    access: AccessService,
    *,
    require_token: bool,
    steering: Collection[tuple[str, str]] = (),
) -> Middleware:
    """Refuse requests to the API while the daemon stops, or without a token where one is needed.

    What no path of the API takes is refused as well: a token that is none, parameters of the
    query string. Where the path names an image, the token is proved with the right to that.
    ``steering`` are methods and paths of routes that a token alone does not open: for these root
    and the daemon's own user need none over the Unix socket, wherever else one is needed.
    """

    def excused(request: web.Request) -> bool:
        resource = request.match_info.route.resource
        path = None if resource is None else resource.canonical
        return (request.method, path) in steering and peer.is_operator(request.transport)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(API_PREFIX):
            if status.stopping:
                raise ShuttingDownError("the daemon is stopping")
            caller = reading.caller(request)
            if caller.token is None and require_token and not excused(request):
                raise UnauthenticatedError(f"{reading.TOKEN_HEADER} is needed here")
            reading.refuse_query(request)
            if "image_id" not in request.match_info:
                await access.prove(caller)
        return await handler(request)

    return check
