"""From an error to an answer: RFC 9457 problem details.

A ``ProblemError`` tells its caller what it has to say. Anything else is told to the log alone,
under an id that the caller gets: neither the text nor the place of an error that nobody expected
is anybody's business outside.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web

from cacheagent.api.reply import FIRST_ERROR, Reply
from cacheagent.errors import (
    BearerError,
    InvalidRequestError,
    MethodNotAllowedError,
    PathNotFoundError,
    ProblemError,
    RetryLaterError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:cacheagent:"

_log = structlog.get_logger(__name__)


def reply_for(error: Exception) -> Reply:
    """Give the answer for what a handler raised; what nobody expected is logged here."""
    error = _translated(error)
    if isinstance(error, ProblemError):
        return _reply(error, error.members())
    error_id = uuid.uuid4().hex
    _log.error("unexpected error", error_id=error_id, exc_info=error)
    hidden = ProblemError(f"the log of the daemon tells the cause under {error_id}")
    return _reply(hidden, {"error_id": error_id})


def _translated(error: Exception) -> Exception:
    """Translate what the router and the reading of a body raise."""
    match error:
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowedError(error.allowed_methods)
        case web.HTTPNotFound():
            return PathNotFoundError("the API has no such path; /openapi.json has those it has")
        case web.HTTPRequestEntityTooLarge():
            return InvalidRequestError([("body", "is longer than 64 KiB")])
        case _:
            return error


def _reply(error: ProblemError, members: Mapping[str, object]) -> Reply:
    document = {
        **members,
        "type": f"{TYPE_PREFIX}{error.word}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
    }
    return Reply(
        status=error.status,
        body=json.dumps(document).encode("ascii"),
        content_type=MEDIA_TYPE,
        headers=_headers(error),
        result="error" if error.status >= FIRST_ERROR else "rejected",
        word=error.word,
        detail=str(error),
    )


def _headers(error: ProblemError) -> dict[str, str]:
    match error:
        case RetryLaterError():
            return {hdrs.RETRY_AFTER: str(error.retry_after)}
        case MethodNotAllowedError():
            return {hdrs.ALLOW: ", ".join(error.allowed)}
        case BearerError():
            return {hdrs.WWW_AUTHENTICATE: 'Bearer realm="cacheagent"'}
        case UnauthenticatedError():
            return {hdrs.WWW_AUTHENTICATE: "Keystone"}
        case _:
            return {}
