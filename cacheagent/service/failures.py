"""What came to nothing: shown to whoever looks, and for some seconds the answer to all."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from cacheagent.model import GlanceImage
from cacheagent.policy import failures

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from cacheagent.errors import ProblemError
    from cacheagent.model import ImageId
    from cacheagent.service.parts import Parts

MEMORY = 1000
"""Failures that are remembered at most, of each kind; the oldest goes first."""

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """An ingest that came to nothing: of which image, why, and when.

    Only the words of the error are kept: its traceback would keep the buffers of the download.
    """

    image: GlanceImage
    why: str
    at: datetime


class Recent(Generic[K]):
    """Gives a failure to all who ask within ``glance.failure_ttl`` seconds, without another try."""

    def __init__(self, parts: Parts) -> None:
        self._config = parts.config
        self._clock = parts.clock
        self._noted: dict[K, tuple[float, ProblemError]] = {}

    def note(self, key: K, error: ProblemError) -> None:
        """Remember the failure, without its traceback."""
        _put(self._noted, key, (self._clock(), copy.copy(error)))

    def forget(self, key: K) -> None:
        """Let the next request try anew."""
        self._noted.pop(key, None)

    def refuse(self, key: K) -> None:
        """Return if nothing failed just now.

        Raises:
            ProblemError: as it failed.

        """
        if key not in self._noted:
            return
        at, error = self._noted[key]
        left = at + self._config().glance.failure_ttl - self._clock()
        if left > 0:
            raise failures.again(error, left)
        del self._noted[key]


class Failures:
    """Remembers the last failure of each image until something better came.

    For ``glance.failure_ttl`` seconds it is given to everybody who asks, without another try.
    """

    def __init__(self, parts: Parts) -> None:
        self._now = parts.now
        self._known: dict[ImageId, Failure] = {}
        self._recent: Recent[ImageId] = Recent(parts)

    @property
    def known(self) -> Mapping[ImageId, Failure]:
        """Give what failed last, by image."""
        return self._known

    def remember(self, image: GlanceImage, why: str) -> None:
        """Keep the failure for those who look later."""
        _put(self._known, image.image_id, Failure(image, why, self._now()))

    def note(self, image_id: ImageId, error: ProblemError) -> None:
        """Have the error answer those who ask within the next seconds, if it holds for them."""
        if failures.lasts(error):
            self._recent.note(image_id, error)

    def forget(self, image_id: ImageId) -> None:
        """Know of no failure, and let the next request try anew."""
        self._known.pop(image_id, None)
        self._recent.forget(image_id)

    def refuse(self, image_id: ImageId) -> None:
        """Return if the image did not fail just now.

        Raises:
            ProblemError: as it failed.

        """
        self._recent.refuse(image_id)


def _put(memory: dict[K, T], key: K, what: T) -> None:
    memory.pop(key, None)
    while len(memory) >= MEMORY:
        del memory[next(iter(memory))]
    memory[key] = what
