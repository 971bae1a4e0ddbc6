"""Images of Glance: their metadata, the right to them, and their data as a stream.

``channel`` sends one request and says what its answer means; ``metadata`` checks the JSON; this
module repeats what may pass, and follows a download to its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import structlog

from cacheagent.backends.glance.channel import (
    Ask,
    Channel,
    Contact,
    FailureError,
    GlanceSettings,
    TokenSource,
)
from cacheagent.backends.glance.metadata import parse_image
from cacheagent.errors import (
    GlanceRefusedError,
    GlanceUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
)
from cacheagent.model import Caller, GlanceImage
from cacheagent.policy.answers import place_body
from cacheagent.sync.backoff import Attempts, Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Self

    from cacheagent.backends.glance.channel import Answer
    from cacheagent.model import ImageId

__all__ = ["Contact", "Glance", "GlanceHooks", "GlanceSettings", "TokenSource"]

T = TypeVar("T")

Take = Callable[[int], Awaitable[None]]
"""Waits until that many bytes may pass."""

_PIECE = 256 << 10

_log = structlog.get_logger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def _at_once(_bytes: int) -> None:
    return


def _unlimited() -> Take:
    return _at_once


async def new_room() -> memoryview:
    """Give memory that nobody else uses, for the next piece of a stream."""
    return memoryview(bytearray(_PIECE))


@dataclass(frozen=True, slots=True, kw_only=True)
class GlanceHooks:
    """What the client calls while it works; each does nothing unless given.

    ``on_request(call, status)`` per request: call is ``versions``, ``show``, ``access`` or
    ``data``, status the number as text, or ``none`` where no answer came. ``on_resume(bytes)``
    when a download goes on, with the bytes that need not come again. ``throttle()`` is
    called once per stream, and what it gives is awaited with the bytes of each piece of data
    received. ``now`` gives the time for ``contact``.
    """

    on_request: Callable[[str, str], None] = lambda _call, _status: None
    on_resume: Callable[[int], None] = lambda _bytes: None
    throttle: Callable[[], Take] = _unlimited
    now: Callable[[], datetime] = _utc_now


@dataclass(slots=True, kw_only=True)
class _Download:
    """How far a download has come: the next byte that is wanted, and the size where known.

    ``take`` is its share of the bandwidth, whatever connections it comes over.
    """

    image: GlanceImage
    caller: Caller
    position: int
    size: int | None
    take: Take

    @property
    def ask(self) -> Ask:
        # A Range goes past Glance's own cache: none for a download from the start.
        wanted = f"bytes={self.position}-" if self.position else None
        return Ask(call="data", image_id=self.image.image_id, caller=self.caller, byte_range=wanted)


LONGEST_ASKED = 3600.0
"""Seconds of a Retry-After that callers are told at most: a slip of a server is to keep nobody
away for days."""


class Glance:
    """A client of the image service, to be started and closed, or used as a context.

    A request that fails in a way that may pass is repeated after a growing wait: connections
    that break or go silent, 429 and 5xx. ``settings.retries`` such failures in a row are
    forgiven. Every method then raises ``GlanceUnavailableError``, and any of them may raise
    ``GlanceRefusedError`` for an answer that no repetition will change and
    ``UnauthenticatedError`` for a caller's token that is not accepted.
    """

    def __init__(
        self,
        settings: GlanceSettings,
        tokens: TokenSource,
        *,
        hooks: GlanceHooks | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._settings = settings
        self._hooks = hooks or GlanceHooks()
        self._backoff = backoff or Backoff()
        self._channel = Channel(
            settings, tokens, on_request=self._hooks.on_request, now=self._hooks.now
        )

    async def start(self) -> None:
        """Make ready, without any request; ``ConfigError`` where ``ca_file`` cannot be used."""
        await self._channel.start()

    async def close(self) -> None:
        """Close all connections; a stream that is read on after that fails."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def contact(self) -> Contact:
        """Whether the last request got an answer, and when."""
        return self._channel.contact

    async def show(self, image_id: ImageId, caller: Caller, *, vouched: bool = True) -> GlanceImage:
        """Give the metadata of an image, whatever its status.

        Raises: ``ImageNotFoundError``, ``ImageForbiddenError`` and those of the class.
        """
        ask = Ask(call="show", image_id=image_id, caller=caller, vouched=vouched)

        async def attempt() -> GlanceImage:
            async with await self._channel.open(ask) as answer:
                return parse_image(await answer.json(), image_id)

        return await self._repeat(attempt)

    async def check_token(self, caller: Caller) -> None:
        """Return if the caller's token is one; for what it is good is not told.

        Raises: those of the class.
        """
        ask = Ask(call="access", image_id=None, caller=caller, vouched=False)

        async def attempt() -> None:
            (await self._channel.open(ask)).close()

        try:
            await self._repeat(attempt)
        except GlanceRefusedError as error:
            # Whoever may list nothing has a token all the same.
            if error.glance_status != HTTPStatus.FORBIDDEN:
                raise

    async def check_access(self, image_id: ImageId, caller: Caller) -> None:
        """Return if the caller may download the image now.

        Metadata alone do not tell: a ``reader`` sees an image that it may not download, and an
        administrator may download one that is deactivated. So this asks for a byte as well.
        The agent vouches for no token here: a request has to begin with one that is still good,
        and what it began goes on when that has run out.

        Raises: ``ImageNotFoundError``, ``ImageForbiddenError``, ``ImageNotActiveError`` and those
        of the class.
        """
        image = await self.show(image_id, caller, vouched=False)
        if image.status != "active":
            raise ImageNotActiveError(image_id, image.status)
        if image.size == 0:
            return
        byte = "bytes=0-0"
        ask = Ask(call="access", image_id=image_id, caller=caller, byte_range=byte, vouched=False)

        async def attempt() -> None:
            async with await self._channel.open(ask) as answer:
                if answer.status not in {200, 206}:
                    message = f"active image {image_id} without data"
                    raise GlanceRefusedError(message, glance_status=answer.status)

        await self._repeat(attempt)

    async def stream(
        self,
        image: GlanceImage,
        *,
        offset: int,
        caller: Caller,
        room: Callable[[], Awaitable[memoryview]] = new_room,
    ) -> AsyncGenerator[memoryview, None]:
        """Give the data of an image from ``offset`` to the end, in pieces as they come.

        Each piece is the beginning of the memory that ``room`` gave for it, received there
        without a copy where the answer tells its length.

        A download that breaks goes on where it stopped, with a token that is then fresh, and
        without a limit on the whole time: each byte that comes forgives the failures so far. It
        ends after exactly ``image.size`` bytes, or raises. Whoever stops earlier closes the
        generator (``contextlib.aclosing``).

        A store that begins anew and yet claims to go on cannot be told from an honest one: after
        a resume only the digest proves the bytes.

        Raises: ``ImageNotFoundError``, ``ImageForbiddenError``, ``ImageNotActiveError`` and those
        of the class; ``ValueError`` for an offset outside of the image.
        """
        if offset < 0 or (image.size is not None and offset > image.size):
            raise ValueError(f"offset {offset} is outside of the image")
        download = _Download(
            image=image,
            caller=caller,
            position=offset,
            size=image.size,
            take=self._hooks.throttle(),
        )
        attempts = self._attempts()
        while download.position != download.size:
            try:
                async with contextlib.aclosing(self._rest_of(download, room)) as rest:
                    async for piece in rest:
                        attempts.progress()
                        yield piece
            except GlanceUnavailableError as error:
                await self._wait_or_raise(attempts, error)
            except ImageForbiddenError:
                await self._check_active(image.image_id, caller)
                raise

    async def _rest_of(
        self, download: _Download, room: Callable[[], Awaitable[memoryview]]
    ) -> AsyncGenerator[memoryview, None]:
        """One attempt at what is missing; moves ``position`` as it gives pieces."""
        async with await self._channel.open(download.ask) as answer:
            placement = place_body(answer.head, position=download.position, size=download.size)
            download.size, skip = placement.total, placement.skip
            if download.position > skip:
                self._hooks.on_resume(download.position - skip)
            # What is here already never shares a piece with what is not.
            while piece := await _receive(answer, (await room())[: skip or None], download.take):
                if skip:
                    skip -= len(piece)
                    continue
                if download.position + len(piece) > download.size:
                    message = f"the data are longer than the {download.size} bytes of the image"
                    raise GlanceRefusedError(message, glance_status=answer.status)
                download.position += len(piece)
                yield piece
        if download.position < download.size:
            raise FailureError(f"the data end after {download.position} of {download.size} bytes")

    async def _check_active(self, image_id: ImageId, caller: Caller) -> None:
        image = await self.show(image_id, caller)
        if image.status != "active":
            raise ImageNotActiveError(image_id, image.status)

    def _attempts(self) -> Attempts:
        return Attempts(self._backoff, self._settings.retries)

    async def _repeat(self, attempt: Callable[[], Awaitable[T]]) -> T:
        attempts = self._attempts()
        while True:
            try:
                return await attempt()
            except GlanceUnavailableError as error:
                await self._wait_or_raise(attempts, error)

    async def _wait_or_raise(self, attempts: Attempts, error: GlanceUnavailableError) -> None:
        """Wait before another attempt; raise what to tell the caller where none is due."""
        asked, hopeless = None, False
        if isinstance(error, FailureError):
            asked, hopeless = error.asked, error.hopeless
        _log.warning("glance_failure", error=str(error), failures_in_a_row=attempts.failures + 1)
        if hopeless or not await attempts.again(asked):
            retry_after = max(error.retry_after, int(min(asked or 0, LONGEST_ASKED)))
            raise GlanceUnavailableError(str(error), retry_after=retry_after) from error


async def _receive(answer: Answer, room: memoryview, take: Take) -> memoryview:
    received = await answer.receive(room)
    await take(received)
    return room[:received]
