"""May this caller have this image: asked of Glance with the caller's own token, hit or miss."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog

from cacheagent import log
from cacheagent.errors import (
    GlanceUnavailableError,
    OperatorOnlyError,
    ProblemError,
    RetryLaterError,
    UnauthenticatedError,
)
from cacheagent.service.failures import Recent
from cacheagent.sync.singleflight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Collection

    from cacheagent.model import Caller, ImageId
    from cacheagent.service.parts import Parts

MEMORY = 10_000
"""Answers that are kept at most; the oldest goes first."""

CHECKS = 8
"""Questions to Glance that all lists of one token ask at the same time."""

_log = structlog.get_logger(__name__)


def refuse_tenant(caller: Caller, what: str) -> None:
    """Raise ``OperatorOnlyError`` where the caller bears a token: ``what`` it asks concerns all."""
    if caller.token is not None:
        raise OperatorOnlyError(f"{what} is for the operator, who asks without a token")


class Access:
    """Believes a yes for ``glance.access_ttl`` seconds, a no never; keeps digests of tokens."""

    def __init__(self, parts: Parts) -> None:
        self._glance = parts.glance
        self._checks = parts.metrics.access_checks_total
        self._config = parts.config
        self._clock = parts.clock
        self._allowed: dict[tuple[bytes, ImageId | None], float] = {}
        # Of Glance, and not of the token: a no is never believed.
        self._failures: Recent[tuple[bytes, ImageId | None]] = Recent(parts)
        self._asking: SingleFlight[tuple[bytes, ImageId | None], None] = SingleFlight()
        self._listing: SingleFlight[tuple[bytes, ImageId], bool] = SingleFlight()
        # Each is there for as long as a list of its token is being made.
        self._slots: WeakValueDictionary[bytes, asyncio.Semaphore] = WeakValueDictionary()

    async def check(self, image_id: ImageId, caller: Caller) -> None:
        """Return if the caller may download the image; without a token nothing is asked.

        Raises:
            ProblemError: the refusal, or why nobody can tell.

        """
        await self._check(image_id, caller)

    async def prove(self, caller: Caller) -> None:
        """Return if the caller's token is one, or it has none.

        Raises:
            UnauthenticatedError: nobody knows the token, or it has run out.
            GlanceUnavailableError: Glance cannot tell.

        """
        await self._check(None, caller)

    async def _check(self, image_id: ImageId | None, caller: Caller) -> None:
        """Ask about the image, or without one about the token alone."""
        if caller.token is None:
            return
        key = _digest(caller.token), image_id
        if self._allowed.get(key, 0.0) > self._clock():
            self._count(image_id, "remembered")
            return
        self._allowed.pop(key, None)
        try:
            self._failures.refuse(key)
            await self._asking.run(key, lambda: self._ask(key, caller))
        except ProblemError as error:
            refused = error.status < ProblemError.status
            self._count(image_id, "denied" if refused else "error")
            raise
        self._count(image_id, "allowed")
        while len(self._allowed) >= MEMORY:
            del self._allowed[next(iter(self._allowed))]
        self._allowed[key] = self._clock() + self._config().glance.access_ttl

    async def may(self, image_id: ImageId, caller: Caller) -> bool:
        """Tell whether the caller may have the image.

        Raises:
            UnauthenticatedError: nobody knows the caller's token.
            GlanceUnavailableError: Glance cannot tell.

        """
        try:
            await self.check(image_id, caller)
        except (UnauthenticatedError, RetryLaterError):
            raise
        except ProblemError as error:
            if error.status >= ProblemError.status:
                _log.warning("left out of a list", image_id=image_id, why=str(error))
            return False
        return True

    async def allowed(self, image_ids: Collection[ImageId], caller: Caller) -> frozenset[ImageId]:
        """Give those of the images that the caller may have.

        Raises:
            UnauthenticatedError: nobody knows the caller's token.
            GlanceUnavailableError: Glance cannot tell what the caller may have.

        """
        if caller.token is None:
            return frozenset(image_ids)
        token = _digest(caller.token)
        slots = self._slots.setdefault(token, asyncio.Semaphore(CHECKS))

        async def ask(image_id: ImageId) -> bool:
            async with slots:
                return await self.may(image_id, caller)

        # Lists of one token that are made at the same time share the questions that wait, too.
        checks = [
            asyncio.ensure_future(self._listing.run((token, each), partial(ask, each)))
            for each in image_ids
        ]
        try:
            answers = await asyncio.gather(*checks)
        finally:
            # One answer that ends it all makes the others useless.
            for check in checks:
                check.cancel()
        return frozenset(each for each, (may, _) in zip(image_ids, answers, strict=True) if may)

    def _count(self, image_id: ImageId | None, result: str) -> None:
        """Count a check of an image; that of a token alone is a request to Glance, and no more."""
        if image_id is not None:
            self._checks.labels(result=result).inc()

    async def _ask(self, key: tuple[bytes, ImageId | None], caller: Caller) -> None:
        _, image_id = key
        with log.under_request(caller.request_id):
            try:
                if image_id is None:
                    await self._glance.check_token(caller)
                else:
                    await self._glance.check_access(image_id, caller)
            except GlanceUnavailableError as error:
                self._failures.note(key, error)
                raise


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
