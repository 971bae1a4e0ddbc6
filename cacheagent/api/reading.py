"""From a request to values: identifiers, caller, preference, body.

Everything here raises ``InvalidRequestError`` with the field and what is wrong with it, unless
it says otherwise.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, TypeVar

from aiohttp import HttpVersion11, hdrs, web
from pydantic import ValidationError

from cacheagent.api import requestid, wording
from cacheagent.api.requests import Request
from cacheagent.errors import InvalidRequestError, UnauthenticatedError
from cacheagent.model import Caller, DiskKey, parse_disk_name, parse_image_id, parse_instance_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from cacheagent.model import ImageId, InstanceId

MAX_BODY = 64 * 1024
BODY_SECONDS = 30.0
"""How long a whole body may take."""

TOKEN_HEADER = "X-Auth-Token"  # noqa: S105 - the name of a header, not a token

EVENT_HEADER = "Last-Event-ID"
EVENT_ID_PATTERN = r"[0-9a-f]+-[0-9]{1,18}"
TOKEN_PATTERN = r"[\x21-\x7e]+"  # noqa: S105 - what a token looks like, not one

T = TypeVar("T")
R = TypeVar("R", bound=Request)


def image_id(request: web.Request) -> ImageId:
    """Give the image that the path names."""
    return _part(request, "image_id", parse_image_id)


def instance_id(request: web.Request) -> InstanceId:
    """Give the instance that the path names."""
    return _part(request, "instance_id", parse_instance_id)


def disk_key(request: web.Request) -> DiskKey:
    """Give the disk that the path names."""
    return DiskKey(instance_id=instance_id(request), name=_part(request, "name", parse_disk_name))


def _part(request: web.Request, name: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(request.match_info[name])
    except ValueError as error:
        raise InvalidRequestError([(name, str(error))]) from error


def caller(request: web.Request) -> Caller:
    """Give on whose behalf the request runs: without the header on that of the operator.

    Raises: ``UnauthenticatedError`` for a token that cannot be one, since it is passed on in a
    header. An empty one is such: who meant to narrow a request does not get more than asked for.
    """
    tokens = request.headers.getall(TOKEN_HEADER, [])
    if len(tokens) > 1:
        raise InvalidRequestError([(TOKEN_HEADER, "is given more than once")])
    token = tokens[0] if tokens else None
    if token is not None and not re.fullmatch(TOKEN_PATTERN, token):
        raise UnauthenticatedError(f"{TOKEN_HEADER} does not hold a Keystone token")
    return Caller(token=token, request_id=requestid.current())


def last_event_id(request: web.Request) -> str | None:
    """Give the event behind which a stream is to go on; None: with what happens from now on."""
    given = request.headers.get(EVENT_HEADER)
    if given is not None and not re.fullmatch(EVENT_ID_PATTERN, given):
        raise InvalidRequestError([(EVENT_HEADER, "is not the id of an event")])
    return given


def prefers_async(request: web.Request) -> bool:
    """Tell whether ``Prefer`` holds ``respond-async`` (RFC 7240, section 4.1)."""
    given = ",".join(request.headers.getall("Prefer", []))
    names = (re.split(r"[;=]", preference)[0].strip() for preference in given.split(","))
    return any(name.lower() == "respond-async" for name in names)


def refuse_query(request: web.Request) -> None:
    """Refuse every parameter of the query string: no path knows one."""
    if request.query_string:
        raise InvalidRequestError(
            [(name or "query", "is not a known parameter") for name in request.query]
            or [("query", "is not known here")]
        )


async def refuse_body(request: web.Request) -> None:
    """Refuse a body where none is asked for."""
    if await _bytes(request):
        raise InvalidRequestError([("body", "is not expected here")])


async def body(request: web.Request, model: type[R], *, required: bool) -> R:
    """Give the body as ``model``; where it is not ``required``, none means all defaults."""
    text = await _bytes(request)
    if not text:
        if required:
            raise InvalidRequestError([("body", "is missing: a JSON object is expected")])
        return model()
    if request.content_type != "application/json":
        raise InvalidRequestError([(hdrs.CONTENT_TYPE, "is not application/json")])
    try:
        value = model.model_validate_json(text)
        json.loads(text, object_pairs_hook=_refuse_duplicates)
    except ValidationError as error:
        raise InvalidRequestError(wording.problems(error, model.model_fields)) from error
    return value


async def expect_later(_request: web.Request) -> None:
    """Do nothing yet for ``Expect``: aiohttp asks before the guards, whom nobody has passed."""


async def _invite(request: web.Request) -> None:
    """Ask for the body where its sender waits for that (RFC 9110, section 10.1.1)."""
    expected = request.headers.get(hdrs.EXPECT, "").lower()
    if expected == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


async def _bytes(request: web.Request) -> bytes:
    if not request.body_exists:
        return b""
    await _invite(request)
    try:
        if request.content.is_eof():  # it came with its head
            return await request.read()
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        told = f"did not arrive within {BODY_SECONDS:.0f} seconds"
        raise InvalidRequestError([("body", told)]) from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise InvalidRequestError([("body", "did not arrive in full")]) from error


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    """Refuse a key that comes twice: readers differ on which one counts (RFC 8259, section 4)."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequestError([(key, "is given more than once")])
        seen.add(key)
