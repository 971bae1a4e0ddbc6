"""May this caller have this image: asked of Glance with the caller's own token, hit or miss."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cacheagent import log
from cacheagent.errors import ProblemError
from cacheagent.sync.singleflight import SingleFlight

if TYPE_CHECKING:
    from cacheagent.model import Caller, ImageId
    from cacheagent.service.parts import Parts

MEMORY = 10_000
"""Answers that are kept at most; the oldest goes first."""


class Access:
    """Believes a yes for ``glance.access_ttl`` seconds, a no never; keeps digests of tokens."""

    def __init__(self, parts: Parts) -> None:
        self._glance = parts.glance
        self._checks = parts.metrics.access_checks_total
        self._config = parts.config
        self._clock = parts.clock
        self._allowed: dict[tuple[bytes, ImageId], float] = {}
        self._asking: SingleFlight[tuple[bytes, ImageId], None] = SingleFlight()

    async def check(self, image_id: ImageId, caller: Caller) -> None:
        """Return if the caller may download the image; without a token nothing is asked.

        Raises:
            ProblemError: the refusal, or why nobody can tell.

        """
        if caller.token is None:
            return
        key = hashlib.sha256(caller.token.encode()).digest(), image_id
        if self._allowed.get(key, 0.0) > self._clock():
            self._checks.labels(result="remembered").inc()
            return
        self._allowed.pop(key, None)
        try:
            await self._asking.run(key, lambda: self._ask(image_id, caller))
        except ProblemError as error:
            refused = error.status < ProblemError.status
            self._checks.labels(result="denied" if refused else "error").inc()
            raise
        self._checks.labels(result="allowed").inc()
        while len(self._allowed) >= MEMORY:
            del self._allowed[next(iter(self._allowed))]
        self._allowed[key] = self._clock() + self._config().glance.access_ttl

    async def _ask(self, image_id: ImageId, caller: Caller) -> None:
        with log.under_request(caller.request_id):
            await self._glance.check_access(image_id, caller)
