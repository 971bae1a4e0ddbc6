"""What proves that bytes are those of an image: their digest in order, and what they contain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cacheagent.backends.inspect import Inspection
from cacheagent.errors import DigestMismatchError
from cacheagent.model import Digest
from cacheagent.policy.admission import Found

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from cacheagent.model import GlanceImage


@dataclass(frozen=True, slots=True)
class Proven:
    """Bytes that are what Glance says: the digest that names their base, and what they are."""

    digest: Digest
    found: Found


class Proof:
    """Follows the bytes of one image from the first to the last, in a thread of its own.

    Where Glance has a strong digest, that is checked and names the base. Else its MD5 is checked,
    which protects from accidents only, and a SHA-256 of our own names the base.
    """

    def __init__(self, image: GlanceImage, thread: Executor) -> None:
        named = image.digest
        self._thread = thread
        self._expected = named or Digest("md5", image.checksum or "")
        self._naming = hashlib.new(named.algorithm if named else "sha256")
        self._checking = self._naming if named else hashlib.md5(usedforsecurity=False)
        self._inspection = Inspection()

    @classmethod
    @contextlib.contextmanager
    def open(cls, image: GlanceImage) -> Iterator[Self]:
        """Give a proof that has seen nothing yet."""
        thread = ThreadPoolExecutor(1, "proof")
        try:
            yield cls(image, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def feed(self, data: memoryview) -> asyncio.Future[None]:
        """Begin to follow ``data``, after all that was fed before; it stays untouched."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._feed, data)

    def _feed(self, data: memoryview) -> None:
        self._naming.update(data)
        if self._checking is not self._naming:
            self._checking.update(data)
        self._inspection.feed(data)

    async def finish(self) -> Proven:
        """Compare.

        Raises:
            DigestMismatchError: the bytes are not those that Glance describes.

        """
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._inspection.finish
        )
        actual = self._checking.hexdigest()
        if actual != self._expected.hex:
            raise DigestMismatchError(
                algorithm=self._expected.algorithm, expected=self._expected.hex, actual=actual
            )
        return Proven(Digest(self._naming.name, self._naming.hexdigest()), found)
