"""A base that is here is proved again: by newer rules, or because a signature is asked for now.

Where the file is the image as it came, it is read again: its digest says that it is still that
image. What a conversion made has lost its source. That is fetched anew, proved, and converted once
more; equal bytes show that the old conversion was honest.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import Manifest
from cacheagent.backends.store.reread import Rereading
from cacheagent.errors import (
    DigestMismatchError,
    HostUnavailableError,
    ImageUnacceptableError,
    QemuImgError,
)
from cacheagent.model import GlanceImage, ImageId, parse_base_id
from cacheagent.policy import admission
from cacheagent.policy.trust import Lack, with_signatures
from cacheagent.policy.verification import is_as_it_came
from cacheagent.service.looking import look_again
from cacheagent.service.proof import Follower
from cacheagent.service.signatures import Signatures
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.signing import SignatureCheck
    from cacheagent.model import Base, Caller, ImageSignature
    from cacheagent.service.parts import Parts
    from cacheagent.service.proof import Proven
    from cacheagent.service.trust import Trust

_log = structlog.get_logger(__name__)


class Renewal:
    """Proves bases again, and writes it down. Whoever admits or records holds the base's lock."""

    def __init__(self, parts: Parts, trust: Trust) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._qemu = parts.qemu
        self._rules = parts.rules
        self._version = parts.inspection_version
        self._counted = parts.metrics.reinspections_total
        self._signatures = Signatures(parts)
        self._trust = trust

    async def proved(self, base: Base, image: GlanceImage, caller: Caller) -> Base | None:
        """Give the base once all that the image needs is proved of it.

        None where its image has to be fetched anew for that. The caller holds the base's lock.

        Raises:
            ImageUnacceptableError: the base, or the image, breaks a rule.
            GlanceUnavailableError: it cannot be told now.
            OSError: the file cannot be read.

        """
        lacking = await self._trust.lacks(base, image)
        if not lacking:
            return base
        if Lack.INSPECTION in lacking:
            self._trust.check(base)
        signed = await self._signatures.demanded(image, caller)
        if not is_as_it_came(base):
            return None
        try:
            seen = await self.read(base, Throttle(None), signed)
        except DigestMismatchError as error:
            _log.error("a base is not what it was", base_id=base.base_id, why=str(error))
            return None
        return await self.admit(base, seen)

    async def read(
        self, base: Base, throttle: Throttle, signed: SignatureCheck | None = None
    ) -> Proven:
        """Read a base that is as it came, no faster than ``throttle`` lets it.

        Raises:
            DigestMismatchError: the file is not what it was.
            ImageUnacceptableError: ``signature-invalid``.
            OSError: it cannot be read.

        """
        follower = Follower(as_image(base), signed)
        async with self._store.reread(base, follower.feed) as reading:
            while (count := await reading.step()) >= 0:
                await throttle.take(count)
        return await self._store.run(follower.finish)

    async def admit(self, base: Base, seen: Proven) -> Base:
        """Judge what was read by the rules of now, let qemu-img look, and write it down.

        Raises:
            ImageUnacceptableError: it is refused. Nobody is handed the base from then on.
            HostUnavailableError: it cannot be told now.

        """
        try:
            await self.judge(base, seen)
        except ImageUnacceptableError as error:
            self._trust.refuse(base, error)
            raise
        return await self.record(base, () if seen.signature is None else (seen.signature,))

    async def judge(self, base: Base, seen: Proven) -> None:
        """Judge what was read of a base that is as it came, and let qemu-img look.

        Raises:
            ImageUnacceptableError: it breaks a rule.
            HostUnavailableError: a limit stopped qemu-img. It may be too low for this host, and a
                base that was let in before is not given up for that.

        """
        path = self._store.layout.base(base.base_id, base.format)
        source = admission.admit_content(as_image(base), seen.found, self._rules())
        try:
            await look_again(self._qemu, path, source, self._rules())
        except QemuImgError as error:
            if error.at_limit:
                raise HostUnavailableError(f"the base cannot be inspected: {error}") from error
            raise ImageUnacceptableError("conversion", str(error)) from error

    async def record(self, base: Base, signatures: tuple[ImageSignature, ...]) -> Base:
        """Write down that the rules of now let the base in, and which signatures hold."""
        proved = replace(
            base,
            inspection_version=self._version,
            signatures=with_signatures(base.signatures, signatures),
        )
        images = await self._catalog.images_of(base.base_id)
        known = tuple(cached.image for cached in images)
        await self._store.write_manifest(Manifest(base=proved, images=known))
        await self._catalog.set_proved(proved)
        self._trust.forget(base.base_id)
        if base.inspection_version != self._version:
            self._counted.labels(result="passed").inc()
        _log.info("a base was proved again", base_id=base.base_id, rules=self._version)
        return proved

    async def is_same(self, made: Path, base: Base) -> bool:
        """Tell whether a file is byte for byte that of the base."""
        try:
            return await _digest(made) == await _digest(
                self._store.layout.base(base.base_id, base.format)
            )
        except OSError as error:
            _log.warning("a base cannot be read", base_id=base.base_id, why=str(error))
            return False


async def _digest(path: Path) -> tuple[int, str]:
    hasher = hashlib.sha256()
    async with Rereading.open(path, hasher.update) as reading:
        while await reading.step() >= 0:
            pass
    return reading.length, hasher.hexdigest()


def as_image(base: Base) -> GlanceImage:
    """Give the image that a base which is as it came would be, for the rules that judge images."""
    digest = parse_base_id(base.base_id)
    return GlanceImage(
        image_id=ImageId(base.base_id),
        name=base.base_id,
        status="active",
        disk_format=base.source_format,
        container_format="bare",
        size=base.size,
        os_hash_algo=digest.algorithm,
        os_hash_value=digest.hex,
    )
