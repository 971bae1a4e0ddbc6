"""What proves that bytes are those of an image: their digest in order, and what they contain."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cacheagent.backends.inspect import Inspection
from cacheagent.errors import DigestMismatchError
from cacheagent.model import Digest, ImageSignature
from cacheagent.policy.admission import Found
from cacheagent.sync.modest import modest_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from cacheagent.backends.signing import SignatureCheck
    from cacheagent.model import GlanceImage

SLICE = 256 << 10
"""Bytes that are hashed, some tenths of a millisecond, between two looks at who goes first.

Where nobody does, all at once: in such slices hashing takes a seventh longer.
"""


@dataclass(frozen=True, slots=True)
class Proven:
    """Bytes that are what Glance says: the digest that names their base, and what they are.

    ``signature`` holds for them; None where none was checked.
    """

    digest: Digest
    found: Found
    signature: ImageSignature | None = None


class Follower:
    """Follows the bytes of one image from the first to the last; to be called by one thread.

    Where Glance has a strong digest, that is checked and names the base. Else its MD5 is checked,
    which protects from accidents only, and a SHA-256 of our own names the base. Each digest is
    computed once, whatever it is for: a signature is made over one, too. ``give_way`` returns when
    it may go on, and tells whether it is to be asked again soon: ``Precedence.give_way``.
    """

    def __init__(
        self,
        image: GlanceImage,
        signed: SignatureCheck | None = None,
        give_way: Callable[[], bool] = lambda: False,
    ) -> None:
        named = image.digest
        self._expected = named or Digest("md5", image.checksum or "")
        self._name_by = named.algorithm if named else "sha256"
        self._signed = signed
        wanted = {self._expected.algorithm, self._name_by}
        if signed is not None:
            wanted.add(signed.algorithm)
        self._hashers = {each: hashlib.new(each, usedforsecurity=False) for each in sorted(wanted)}
        self._inspection = Inspection()
        self._give_way = give_way

    def feed(self, data: memoryview) -> None:
        """Take the next bytes; the buffer is free again afterwards."""
        done = 0
        while done < len(data):
            end = done + SLICE if self._give_way() else len(data)
            for hasher in self._hashers.values():
                hasher.update(data[done:end])
            done = end
        self._inspection.feed(data)

    def finish(self) -> Proven:
        """Compare.

        Raises:
            DigestMismatchError: the bytes are not those that Glance describes.
            ImageUnacceptableError: ``signature-invalid``: its owner did not sign these bytes.

        """
        found = self._inspection.finish()
        algorithm, expected = self._expected.algorithm, self._expected.hex
        actual = self._hashers[algorithm].hexdigest()
        if actual != expected:
            raise DigestMismatchError(algorithm=algorithm, expected=expected, actual=actual)
        if self._signed is not None:
            self._signed.verify(self._hashers[self._signed.algorithm].digest())
        name = Digest(self._name_by, self._hashers[self._name_by].hexdigest())
        return Proven(name, found, None if self._signed is None else self._signed.signature)


class Proof:
    """A follower in a thread of its own."""

    def __init__(self, follower: Follower, thread: Executor) -> None:
        self._follower = follower
        self._thread = thread

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        image: GlanceImage,
        signed: SignatureCheck | None = None,
        give_way: Callable[[], bool] = lambda: False,
    ) -> Iterator[Self]:
        """Give a proof that has seen nothing yet; see ``Follower``."""
        thread = modest_thread("proof")
        try:
            yield cls(Follower(image, signed, give_way), thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def feed(self, data: memoryview) -> asyncio.Future[None]:
        """Begin to follow ``data``, after all that was fed before; it stays untouched."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._follower.feed, data)

    async def finish(self) -> Proven:
        """Compare; raises as ``Follower.finish``."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._follower.finish)
