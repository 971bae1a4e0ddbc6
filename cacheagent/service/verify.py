"""Bases are read again, and their digests compared with what they were."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import Manifest
from cacheagent.errors import CacheAgentError, ImageNotFoundError
from cacheagent.model import BaseState, Digest, Lease, Verification, VerificationOutcome
from cacheagent.policy.verification import (
    FILE_ALGORITHM,
    expected_digest,
    has_right_length,
    next_due,
)
from cacheagent.service.access import refuse_tenant
from cacheagent.service.events import EventKind
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from cacheagent.model import Base, BaseId, Caller, ImageId
    from cacheagent.service.access import Access
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.repair import Repair

HOLDER = "verification"
LEASE_SECONDS = 600
RENEW_SECONDS = LEASE_SECONDS / 3

ON_REQUEST = 2
"""Bases that are read at the same time because somebody asked."""

LOST = frozenset({errno.ENOENT, errno.ELOOP})
"""Errors that say that no file, or none of ours, has the name of the base."""

UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""Errors by which a device or a file system says that the bytes are gone."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """What reading a base came to: its digest, or why there is none."""

    digest: Digest | None
    bytes_read: int
    why: str | None = None
    lost: bool = False


class Verify:
    """Compares bases with what they were; a damaged one is handed to ``repair``."""

    def __init__(self, parts: Parts, bases: Bases, repair: Repair, *, access: Access) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._bytes = parts.metrics.scrub_bytes_total
        self._events = parts.events
        self._config = parts.config
        self._now = parts.now
        self._clock = parts.clock
        self._bases = bases
        self._repair = repair
        self._access = access
        self._slots = asyncio.Semaphore(ON_REQUEST)

    async def verify(self, image_id: ImageId, caller: Caller) -> Verification:
        """Read the base of the image again, as fast as it goes, and compare its digest.

        Raises:
            ImageNotFoundError: the image has no base here.
            OperatorOnlyError: the caller bears a token; reading takes the disk's time from all.

        """
        await self._access.check(image_id, caller)
        refuse_tenant(caller, "verification")
        cached = await self._catalog.image(image_id)
        base_id = None if cached is None else cached.base_id
        base = None if base_id is None else await self._catalog.base(base_id)
        if base is not None and base.state is BaseState.QUARANTINED:
            return _verification(base, _Found(None, 0, "it is in quarantine"), 0.0)
        done = None
        if base is not None:
            async with self._slots:
                done = await self.verify_base(base, Throttle(None))
        if done is None:
            raise ImageNotFoundError(f"image {image_id} has no base here")
        return done

    async def due(self, without: Collection[BaseId]) -> Base | None:
        """Give the base that is to be read again now, if any is; not one of ``without``."""
        bases = [base for base in await self._catalog.bases() if base.base_id not in without]
        return next_due(bases, self._config().scrub.interval, self._now())

    async def verify_base(self, base: Base, throttle: Throttle) -> Verification | None:
        """Read the base again, no faster than ``throttle`` lets it, and compare its digest.

        It is leased meanwhile. None tells that it is not there to be read any more.

        Raises:
            OSError: it cannot be read, and that says nothing about the base.

        """
        started = self._clock()
        async with self._leased(base) as held:
            if not held:
                return None
            found = await self._look(base, throttle)
        done = _verification(base, found, self._clock() - started)
        if done.outcome is not VerificationOutcome.DAMAGED:
            await self._note(base, done)
        elif found.lost:
            await self._repair.lost(base)
        else:
            await self._repair.damaged(base, done.error or "")
        return done

    async def _look(self, base: Base, throttle: Throttle) -> _Found:
        """Read and hash the file; an error that tells of damage is what was found."""
        expected = expected_digest(base)
        algorithm = FILE_ALGORITHM if expected is None else expected.algorithm
        hasher = hashlib.new(algorithm)
        read = 0
        try:
            async with self._store.reread(base, hasher.update) as reading:
                while (count := await reading.step()) >= 0:
                    read += count
                    self._bytes.inc(count)
                    await throttle.take(count)
        except OSError as error:
            if error.errno not in LOST | UNREADABLE:
                raise
            why = f"its file cannot be read: {error.strerror}"
            return _Found(None, read, why, lost=error.errno in LOST)
        if not has_right_length(base, reading.length):
            return _Found(None, read, f"its file is {reading.length} bytes long")
        return _Found(Digest(algorithm, hasher.hexdigest()), read)

    async def _note(self, base: Base, done: Verification) -> None:
        """Write down that the base is what it was; a digest that is new goes to its manifest."""
        digest = Digest(done.algorithm, done.actual or "")
        now = self._now()
        async with self._bases.locks.hold(base.base_id):
            row = await self._catalog.base(base.base_id)
            # Another one may have come under its name since it was looked at.
            if row is None or row.state is not BaseState.READY or row.fetched_at != base.fetched_at:
                return
            if done.outcome is VerificationOutcome.RECORDED:
                images = await self._catalog.images_of(base.base_id)
                known = tuple(cached.image for cached in images)
                record = replace(row, file_digest=digest, verified_at=now)
                await self._store.write_manifest(Manifest(base=record, images=known))
            await self._catalog.set_verified(base.base_id, digest, now)
        facts = {"base_id": base.base_id, "outcome": done.outcome.value, "bytes": done.bytes_read}
        _log.info("a base was read again", **facts)
        self._events.emit(EventKind.BASE_VERIFIED, **facts)

    @contextlib.asynccontextmanager
    async def _leased(self, base: Base) -> AsyncIterator[bool]:
        """Lease the base, as long as it takes; False where it is not READY."""
        lease_id = uuid.uuid4().hex
        held = await self._lease(base, lease_id)
        renewing = asyncio.create_task(self._renew(base, lease_id))
        try:
            yield held
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
            await self._catalog.release(lease_id)

    async def _renew(self, base: Base, lease_id: str) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._lease(base, lease_id)
            except CacheAgentError as error:
                _log.warning("a lease was not renewed", base_id=base.base_id, why=str(error))

    async def _lease(self, base: Base, lease_id: str) -> bool:
        until = self._now() + timedelta(seconds=LEASE_SECONDS)
        lease = Lease(lease_id=lease_id, base_id=base.base_id, holder=HOLDER, expires_at=until)
        return await self._catalog.lease(lease)


def _verification(base: Base, found: _Found, seconds: float) -> Verification:
    """Judge what was found."""
    expected, actual = expected_digest(base), found.digest
    outcome = VerificationOutcome.VERIFIED
    why = found.why
    if actual is None:
        outcome = VerificationOutcome.DAMAGED
    elif expected is None:
        outcome = VerificationOutcome.RECORDED
    elif actual != expected:
        outcome = VerificationOutcome.DAMAGED
        why = f"its {actual.algorithm} is {actual.hex}, not {expected.hex}"
    return Verification(
        base_id=base.base_id,
        algorithm=FILE_ALGORITHM if expected is None else expected.algorithm,
        expected=None if expected is None else expected.hex,
        actual=None if actual is None else actual.hex,
        outcome=outcome,
        bytes_read=found.bytes_read,
        seconds=seconds,
        error=why,
    )
