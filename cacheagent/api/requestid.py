"""The id of a request: the caller's where it is sane, else a new one.

It stands in every line of the log that the request causes and is echoed; Glance gets it if it has
the form that OpenStack takes.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

HEADERS = ("X-OpenStack-Request-ID", "X-Request-ID")
"""Where an id is looked for, in this order, and where it is echoed."""

PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
"""Ids that are taken over: nothing that could break a line of a log or a header."""

_current: ContextVar[str] = ContextVar("request_id")


def current() -> str:
    """Give the id of the request that this task serves; ``LookupError`` outside of one."""
    return _current.get()


@web.middleware
async def with_request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler under an id, bound to the log, and echo it."""
    request_id = _accepted(request) or f"req-{uuid.uuid4()}"
    # One task serves all requests of a connection: nothing may stay bound after this one.
    token = _current.set(request_id)
    try:
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            response = await handler(request)
    finally:
        _current.reset(token)
    for name in HEADERS:
        response.headers[name] = request_id
    return response


def _accepted(request: web.Request) -> str | None:
    given = (request.headers.get(name, "") for name in HEADERS)
    return next((text for text in given if re.fullmatch(PATTERN, text)), None)
