"""One request to the image service: which endpoint, which token, what its answer means."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import aiohttp

from cacheagent.backends.glance.inlet import Inlet, take_over
from cacheagent.backends.glance.metadata import parse_versions
from cacheagent.backends.glance.sessions import Sessions
from cacheagent.errors import (
    GlanceRefusedError,
    GlanceUnavailableError,
    ImageForbiddenError,
    ImageNotFoundError,
    UnauthenticatedError,
)
from cacheagent.model import UUID_PATTERN, Caller, ImageId
from cacheagent.policy.answers import Head, brief, parse_retry_after, plain_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from cacheagent.errors import ProblemError

_JSON_LIMIT = 1 << 20
_REST_SECONDS = 30.0
_NOTHING = memoryview(b"")
_PASSING_STATUSES = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class TokenSource(Protocol):
    """What an identity gives: where the image service is, and tokens for it.

    All raise ``GlanceUnavailableError`` where Keystone cannot be reached, and
    ``GlanceRefusedError`` where it refuses.
    """

    async def endpoints(self) -> Sequence[str]:
        """Give the base URLs of the image service, in order of preference."""
        ...

    async def token(self) -> str | None:
        """Give the agent's own token, fresh enough to be used; None where there are no tokens."""
        ...

    async def renew(self, refused: str) -> str | None:
        """Give another token than ``refused``, which Glance did not accept.

        The same one again means that there is no other.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GlanceSettings:
    """How to talk to the image service: seconds to connect, seconds of silence, retries in a row.

    The seconds bound an answer without data as a whole, one with data only while it is silent.
    ``ca_file`` replaces the system's certificate authorities.
    """

    connect_timeout: float = 10.0
    stall_timeout: float = 60.0
    retries: int = 5
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A GET for an image: ``show`` its metadata, or its data as ``byte_range`` limits them.

    Without an image it asks for nothing but whether the token is one. Not ``vouched``: the
    caller's token goes alone, so that one which has run out is refused.
    """

    call: Literal["show", "access", "data"]
    image_id: ImageId | None
    caller: Caller
    byte_range: str | None = None
    vouched: bool = True

    @property
    def path(self) -> str:
        """The path below the base of version 2."""
        if self.image_id is None:
            return "/images?limit=1"
        return f"/images/{self.image_id}" + ("" if self.call == "show" else "/file")


@dataclass(frozen=True, slots=True)
class Contact:
    """The last request: whether the service answered it, and when; both None before any."""

    reachable: bool | None = None
    at: datetime | None = None


class FailureError(GlanceUnavailableError):
    """One attempt failed. ``asked``: seconds to wait by its word; ``hopeless``: do not repeat."""

    def __init__(self, message: str, *, asked: float | None = None, hopeless: bool = False) -> None:
        super().__init__(message)
        self.asked = asked
        self.hopeless = hopeless


class EndpointError(GlanceRefusedError):
    """An endpoint that is no image service of version 2; another may be."""


class Answer:
    """An answer of the service, to be used as a context; leaving it gives the connection back.

    A connection whose body was not read to its end is closed.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, stall: float, on_failure: Callable[[], None]
    ) -> None:
        self._response = response
        self._stall = stall
        self._on_failure = on_failure
        self._inlet: Inlet | None = None
        self._come = _NOTHING
        self.url = str(response.url)
        self.status = response.status
        self.headers = response.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it."""
        self._response.release()

    @property
    def head(self) -> Head:
        """What the headers tell about the body."""
        return Head(
            status=self.status,
            length=self._response.content_length,
            content_range=self.headers.get("Content-Range"),
            content_encoding=self.headers.get("Content-Encoding"),
        )

    async def piece(self) -> bytes:
        """Give what has come of the body, empty at its end.

        Raises: ``FailureError`` where the connection breaks or goes silent.
        """
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self._on_failure()
            raise _failure(self.url, error) from error

    async def receive(self, room: memoryview) -> int:
        """Receive what comes of the body into ``room``, and say how much; 0 at its end.

        To be used for all of a body or for nothing of it. Raises: ``FailureError`` as ``piece``.
        """
        if not self._come and self._inlet is None:
            come, self._inlet = take_over(self._response, self._stall)
            self._come = memoryview(come)
        if not self._come and self._inlet is not None:
            return await self._receive(self._inlet, room)
        if not self._come:
            self._come = memoryview(await self.piece())
        taken = min(len(room), len(self._come))
        room[:taken] = self._come[:taken]
        # Of what is used up no view is kept: an empty one would hold all of it for the whole body.
        self._come = self._come[taken:] if taken < len(self._come) else _NOTHING
        return taken

    async def _receive(self, inlet: Inlet, room: memoryview) -> int:
        try:
            return await inlet.receive(room)
        except (aiohttp.ClientError, OSError) as error:
            self._on_failure()
            raise _failure(self.url, error) from error

    async def json(self) -> bytes:
        """Read a short body whole.

        Raises: ``FailureError`` as ``piece``; ``GlanceRefusedError`` where it is not short.
        """
        body = bytearray()
        while piece := await self.piece():
            body += piece
            if len(body) > _JSON_LIMIT:
                raise GlanceRefusedError(
                    f"more than {_JSON_LIMIT} bytes of metadata", glance_status=self.status
                )
        return bytes(body)


class Channel:
    """Sends requests, each to the first endpoint that answers.

    An endpoint that failed, or is no image service, is tried last for a while.
    """

    def __init__(
        self,
        settings: GlanceSettings,
        tokens: TokenSource,
        *,
        on_request: Callable[[str, str], None],
        now: Callable[[], datetime],
    ) -> None:
        self._tokens = tokens
        self._on_request = on_request
        self._now = now
        self._bases: dict[str, str] = {}
        self._rests_until: dict[str, float] = {}
        self._stall = settings.stall_timeout
        self._sessions = Sessions(settings)
        self.contact = Contact()

    async def start(self) -> None:
        """Make ready, without any request; ``ConfigError`` where ``ca_file`` cannot be used."""
        await self._sessions.start()

    async def close(self) -> None:
        """Close all connections."""
        await self._sessions.close()

    async def open(self, ask: Ask) -> Answer:
        """Give an answer of the 2xx kind, whose body is still to be read.

        Raises: ``FailureError`` or another ``GlanceUnavailableError`` where no endpoint gave an
        answer; the error that stands for the answer where it is another one; ``EndpointError``
        where no endpoint is an image service.
        """
        failure: FailureError | None = None
        refusal: EndpointError | None = None
        for endpoint in self._by_preference(await self._tokens.endpoints()):
            try:
                return await self._open_at(endpoint, ask)
            except FailureError as error:
                self._rest(endpoint)
                failure = error
            except EndpointError as error:
                self._rest(endpoint)
                refusal = error
        # One that failed may be well again soon, which is worth another attempt.
        raise failure or refusal or FailureError("no endpoint of the image service is known")

    def _by_preference(self, endpoints: Sequence[str]) -> Sequence[str]:
        now = asyncio.get_running_loop().time()
        return sorted(endpoints, key=lambda endpoint: self._rests_until.get(endpoint, now) > now)

    def _rest(self, endpoint: str) -> None:
        self._rests_until[endpoint] = asyncio.get_running_loop().time() + _REST_SECONDS

    async def _open_at(self, endpoint: str, ask: Ask) -> Answer:
        token = await self._tokens.token()
        answer = await self._ask(endpoint, ask, token)
        mine = ask.vouched or ask.caller.token is None
        if answer.status == HTTPStatus.UNAUTHORIZED and token is not None and mine:
            answer.close()
            other = await self._tokens.renew(token)
            if other != token:
                answer = await self._ask(endpoint, ask, other)
        error = self._error_for(answer, ask)
        if error is not None:
            answer.close()
            raise error
        return answer

    async def _ask(self, endpoint: str, ask: Ask, token: str | None) -> Answer:
        headers = dict(_headers(ask, token))
        response = await self._get(ask.call, await self._base(endpoint) + ask.path, headers)
        return self._answer(response, endpoint)

    def _answer(self, response: aiohttp.ClientResponse, endpoint: str) -> Answer:
        return Answer(response, self._stall, on_failure=lambda: self._rest(endpoint))

    async def _base(self, endpoint: str) -> str:
        if endpoint not in self._bases:
            try:
                self._bases[endpoint] = await self._discover(endpoint)
            except GlanceRefusedError as error:
                raise EndpointError(str(error), glance_status=error.glance_status) from error
        return self._bases[endpoint]

    async def _discover(self, endpoint: str) -> str:
        """Find the base of version 2 of the API; the endpoint may name a version or none."""
        root = re.sub(r"/v\d+(\.\d+)?$", "", endpoint.rstrip("/"), flags=re.ASCII)
        response = await self._get("versions", f"{root}/", {})
        async with self._answer(response, endpoint) as answer:
            error = self._error_for(answer, None)
            if error is not None and answer.status != HTTPStatus.MULTIPLE_CHOICES:
                raise error
            versions = parse_versions(await answer.json(), answer.status)
        if not any(version.startswith("v2") for version in versions):
            found = ", ".join(versions) or "none"
            raise GlanceRefusedError(
                f"{root} offers the API versions {found}; v2 is needed",
                glance_status=answer.status,
            )
        return f"{root}/v2"

    async def _get(self, call: str, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        try:
            response = await self._sessions.get(url, headers, data=call == "data")
        except (aiohttp.ClientError, OSError) as error:
            self._note(call, "none", reachable=False)
            raise _failure(url, error) from error
        reachable = response.status < HTTPStatus.INTERNAL_SERVER_ERROR
        self._note(call, str(response.status), reachable=reachable)
        return response

    def _note(self, call: str, status: str, *, reachable: bool) -> None:
        self._on_request(call, status)
        self.contact = Contact(reachable, self._now())

    def _error_for(self, answer: Answer, ask: Ask | None) -> ProblemError | None:
        """Say which error an answer stands for; None for one of the 2xx kind."""
        status = answer.status
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        if status in _PASSING_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            asked = parse_retry_after(answer.headers.get("Retry-After"), self._now())
            return FailureError(f"{answer.url}: {_say(status)}", asked=asked)
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            # The address itself may be a credential, as those that stores sign.
            where = plain_url(answer.headers.get("Location", "")) or "nowhere"
            message = f"{answer.url} redirects to {where}; redirects are not followed"
            return _refused(status, message)
        known = None if ask is None else _error_about(status, ask)
        return known or _refused(status, f"{answer.url}: {_say(status)}")


def _error_about(status: int, ask: Ask) -> ProblemError | None:
    if status == HTTPStatus.UNAUTHORIZED:
        if ask.caller.token is not None:
            return UnauthenticatedError("the token is not accepted by Glance")
        return _refused(status, "Glance does not accept the agent's own token")
    if ask.image_id is None:
        return None
    if status == HTTPStatus.FORBIDDEN:
        what = "seen" if ask.call == "show" else "downloaded"
        return ImageForbiddenError(
            ask.image_id, f"image {ask.image_id} may not be {what} with this token"
        )
    if status == HTTPStatus.NOT_FOUND:
        return ImageNotFoundError(f"image {ask.image_id} is not known to Glance, or not visible")
    return None


def _refused(status: int, message: str) -> GlanceRefusedError:
    return GlanceRefusedError(message, glance_status=status)


def _say(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _failure(url: str, error: Exception) -> FailureError:
    # What TLS does not accept now, it will not accept a second later.
    if isinstance(error, aiohttp.ClientSSLError):
        message = f"TLS with {url} fails, see glance.ca_file: {brief(str(error))}"
        return FailureError(message, hopeless=True)
    # Without the name of the TLS setting, which aiohttp tells even where there is no TLS.
    if isinstance(error, aiohttp.ClientConnectorError):
        return FailureError(f"Glance at {url} cannot be reached: {error.os_error}")
    return FailureError(f"Glance at {url}: {brief(str(error)) or type(error).__name__}")


def _headers(ask: Ask, own_token: str | None) -> Iterator[tuple[str, str]]:
    callers_token = ask.caller.token
    if callers_token is not None and not re.fullmatch(r"[\x21-\x7e]+", callers_token):
        raise UnauthenticatedError("the token has characters that no token has")
    if callers_token is not None:
        yield "X-Auth-Token", callers_token
    if own_token is not None and (ask.vouched or callers_token is None):
        # Glance takes a caller's token that has run out where a service vouches for it.
        yield "X-Auth-Token" if callers_token is None else "X-Service-Token", own_token
    # OpenStack's services take an id of this form only, and drop any other.
    if match := re.fullmatch(f"(?:req-)?({UUID_PATTERN})", ask.caller.request_id or ""):
        yield "X-OpenStack-Request-ID", f"req-{match[1]}"
    if ask.byte_range is not None:
        yield "Range", ask.byte_range
