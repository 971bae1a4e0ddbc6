"""Ensure a base: a hit answers from the catalog, a crowd of misses shares one download."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from cacheagent import log
from cacheagent.errors import (
    DiskFullError,
    ImageForbiddenError,
    ImageNotFoundError,
    ImageUnacceptableError,
    ProblemError,
    RetryLaterError,
    ShuttingDownError,
    UnauthenticatedError,
)
from cacheagent.model import Base, BaseState, CacheResult, GlanceImage, Standing
from cacheagent.policy import admission
from cacheagent.policy.trust import Lack
from cacheagent.policy.verification import has_right_length, is_as_it_came
from cacheagent.service.despite import despite_full
from cacheagent.service.events import EventKind
from cacheagent.service.failures import Failures
from cacheagent.service.meter import Meter
from cacheagent.service.publishing import Publishing
from cacheagent.service.renewal import Renewal
from cacheagent.service.telling import told
from cacheagent.service.trust import Trust
from cacheagent.sync.keylock import KeyLock
from cacheagent.sync.singleflight import SingleFlight
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheagent.model import BaseId, Caller, ImageId, Progress
    from cacheagent.service.access import Access
    from cacheagent.service.failures import Failure
    from cacheagent.service.ingest import Ingest, Made
    from cacheagent.service.parts import Parts

PERSONAL = (UnauthenticatedError, ImageForbiddenError, ImageNotFoundError)
"""Refusals that hold for the caller whose token was used, and for nobody else."""

LEASE_SECONDS = 600
"""How long a lease of a request counts: much longer than a request needs it."""

UNWANTED = "stopped: nobody waited for it any more"
BROKEN = "internal error; see the agent's log"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ensured:
    """A base that is ready, the image it was asked for, and what the request found.

    ``lease_id`` names the lease that keeps the base for the request, if it took one.
    """

    base: Base
    image: GlanceImage
    result: CacheResult
    lease_id: str | None = None


class PersonalError(Exception):
    """Carries a refusal, and the token that it holds for, to all who waited."""

    def __init__(self, error: ProblemError, token: str | None) -> None:
        self.error = error
        self.token = token
        super().__init__(str(error))


class Bases:
    """Knows which bases are there, and brings those that are not."""

    def __init__(self, parts: Parts, *, ingest: Ingest, access: Access) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._glance = parts.glance
        self._room = parts.room
        self._metrics = parts.metrics
        self._events = parts.events
        self._rules = parts.rules
        self._clock = parts.clock
        self._ingest = ingest
        self.access = access
        self._flights: SingleFlight[ImageId, Ensured | None] = SingleFlight()
        self._announcing: SingleFlight[tuple[ImageId, str | None], None] = SingleFlight()
        self._meters: dict[ImageId, Meter] = {}
        self._failures = Failures(parts)
        self._waiting: Counter[ImageId] = Counter()
        self._stopping = False
        self.trust = Trust(parts)
        self.renewal = Renewal(parts, self.trust)
        self._publishing = Publishing(parts, self.trust, self.renewal)
        self.locks: KeyLock[BaseId] = KeyLock()

    async def ensure(self, image_id: ImageId, caller: Caller) -> Ensured:
        """Give the base of the image, after downloading it if it is not here.

        Raises:
            ProblemError: why not; every caller that waited for the same download gets the same.

        """
        await self.access.check(image_id, caller)
        ensured = await self.leased(image_id, caller, "a request that is about to end")
        await self.release(ensured)
        return ensured

    async def leased(self, image_id: ImageId, caller: Caller, holder: str) -> Ensured:
        """Give the base, leased, to a caller of whom it was checked that it may have the image.

        From the call on, the base is in use: by a waiter, and then by the lease, which is for the
        caller to release. ``holder`` says what for.

        Raises:
            ProblemError: as ``ensure``.

        """
        self._waiting[image_id] += 1
        try:
            return await self._leased(image_id, caller, holder)
        finally:
            self._waiting[image_id] -= 1
            if not self._waiting[image_id]:
                del self._waiting[image_id]

    async def release(self, ensured: Ensured) -> None:
        """Let go of the base; a lease that cannot be dropped for want of room ends by itself."""
        if (lease_id := ensured.lease_id) is not None:
            with contextlib.suppress(DiskFullError):
                await despite_full(self._store, lambda: self._catalog.release(lease_id))

    async def _leased(self, image_id: ImageId, caller: Caller, holder: str) -> Ensured:
        result = CacheResult.HIT
        while (found := await self._lease(image_id, holder)) is None:
            self._failures.refuse(image_id)
            try:
                brought, joined = await self._flights.run(
                    image_id, lambda: self._bring_logged(image_id, caller)
                )
            except PersonalError as refused:
                # It ran with the token of somebody else, who may not have the image.
                if refused.token == caller.token:
                    raise refused.error from None
                continue
            if brought is not None:
                result = CacheResult.JOINED if joined else brought.result
        return replace(found, result=result)

    async def _lease(self, image_id: ImageId, holder: str) -> Ensured | None:
        """Lease the base of the image if it is here; None where it has to be brought, or proved."""
        lease_id = uuid.uuid4().hex
        until = self._now() + timedelta(seconds=LEASE_SECONDS)
        try:
            found = await self._room.retrying(
                lambda: self._catalog.lease_image(
                    image_id, lease_id, holder=holder, expires_at=until
                )
            )
            if found is None:
                return None
            cached, base = found
            trusted = not await self.trust.lacks(base, cached.image)
            if trusted and cached.standing is Standing.ACTIVE and await self._lies_there(base):
                return Ensured(base, cached.image, CacheResult.HIT, lease_id)
        except BaseException:
            await self._catalog.release(lease_id)
            raise
        await self._catalog.release(lease_id)
        return None

    async def outlook(self, image_id: ImageId) -> CacheResult:
        """Tell what a request for the image would find now."""
        if await self.ready(image_id) is not None:
            return CacheResult.HIT
        return CacheResult.JOINED if image_id in self.coming() else CacheResult.MISS

    async def ready(self, image_id: ImageId) -> Ensured | None:
        """Give the base of the image if it is here; None where it has to be brought."""
        cached = await self._catalog.image(image_id)
        if cached is None or cached.base_id is None or cached.standing is not Standing.ACTIVE:
            return None
        base = await self._here(cached.base_id)
        if base is None or await self.trust.lacks(base, cached.image):
            return None
        return Ensured(base, cached.image, CacheResult.HIT)

    def progress(self, image_id: ImageId) -> Progress | None:
        """Tell how far the ingest of the image is; None where none runs."""
        meter = self._meters.get(image_id)
        return None if meter is None else meter.progress()

    def waiters(self, image_id: ImageId) -> int:
        """Count the requests that wait for the image, or are about to lease its base."""
        return self._waiting[image_id]

    def all_waiters(self) -> int:
        """Count the requests that wait for any image."""
        return self._waiting.total()

    def coming(self) -> frozenset[ImageId]:
        """Give the images whose ingest runs."""
        return self._flights.keys()

    def failures(self) -> Mapping[ImageId, Failure]:
        """Give the images whose last ingest failed, if nothing better came since."""
        return self._failures.known

    async def forget(self, image_id: ImageId) -> None:
        """Forget an image that has no base: its intent, its failure, and what came of it.

        It is a run like an ingest of the image, so that none begins meanwhile. The caller has
        seen, without waiting since, that none is under way.
        """
        await self._flights.run(image_id, lambda: self._forget(image_id))

    async def _forget(self, image_id: ImageId) -> None:
        await self._store.discard_ingest(image_id)
        await self._catalog.forget_image(image_id)
        self._failures.forget(image_id)

    async def announce(self, image_id: ImageId, caller: Caller) -> None:
        """Write down the intent to bring the image, so that it shows as coming.

        Raises:
            ProblemError: what Glance says at once, or the rules of its description.

        """
        await self.access.check(image_id, caller)
        self._failures.refuse(image_id)
        # A crowd that waits for nothing asks a server in trouble no more often than one that waits.
        whose = image_id, caller.token
        await self._announcing.run(whose, lambda: self._announce(image_id, caller))

    async def _announce(self, image_id: ImageId, caller: Caller) -> None:
        try:
            with log.under_request(caller.request_id):
                await self._describe(image_id, caller)
        except ProblemError as error:
            self._failures.note(image_id, error)
            raise

    async def stop(self) -> None:
        """End all downloads so that they can be resumed; whoever waits is told why."""
        self._stopping = True
        stopping = ShuttingDownError("the agent is stopping; ask again")
        await self._announcing.shutdown(stopping)
        await self._flights.shutdown(stopping)

    async def _here(self, base_id: BaseId) -> Base | None:
        """Give the base if it is ready and its file really lies there."""
        base = await self._catalog.base(base_id)
        if base is None or base.state is not BaseState.READY:
            return None
        return base if await self._lies_there(base) else None

    async def _lies_there(self, base: Base) -> bool:
        length = await self._store.base_length(base.base_id, base.format)
        there = length is not None and has_right_length(base, length)
        if not there:
            _log.error(
                "a base is gone, or cut; it is fetched anew", base_id=base.base_id, length=length
            )
        return there

    async def _bring_logged(self, image_id: ImageId, caller: Caller) -> Ensured:
        with log.under_request(caller.request_id):
            return await self._bring(image_id, caller)

    async def _bring(self, image_id: ImageId, caller: Caller) -> Ensured:
        """Run once for all who want the image, and keep the books about how it ends."""
        meter = self._meters[image_id] = Meter(self._clock)
        self._failures.forget(image_id)
        reason, why = "cancelled", UNWANTED
        try:
            async with told(self._events, image_id, meter):
                ensured = await self._fetch(image_id, caller, meter)
            reason = ""
        except ProblemError as error:
            reason, why = error.word, str(error)
            self._failures.note(image_id, error)
            await self._give_up(image_id, error)
            if isinstance(error, PERSONAL):
                raise PersonalError(error, caller.token) from error
            raise
        except asyncio.CancelledError:
            if await self.ready(image_id) is not None:
                # It was published while its last waiter left.
                self._failures.forget(image_id)
                reason = ""
            elif not self._stopping:
                # Nobody wants it any more; what has come stays for whoever asks again.
                await self._catalog.forget_image(image_id)
            raise
        except Exception:
            reason, why = "internal", BROKEN
            raise
        finally:
            del self._meters[image_id]
            if reason:
                self._metrics.download_failures_total.labels(reason=reason).inc()
                facts = {"image_id": image_id, "reason": reason, "error": why}
                self._events.emit(EventKind.IMAGE_FAILED, **facts)
        return ensured

    async def _fetch(self, image_id: ImageId, caller: Caller, meter: Meter) -> Ensured:
        if (known := await self._inspected_again(image_id, caller)) is not None:
            return known
        image = await self._describe(image_id, caller)
        try:
            # A disk that fills up costs one eviction; what has arrived is gone on from.
            return await self._room.retrying(lambda: self._bring_in(image, caller, meter))
        except ProblemError as error:
            if not isinstance(error, PERSONAL):
                self._failures.remember(image, str(error))
            raise
        except Exception:
            self._failures.remember(image, BROKEN)
            raise
        except asyncio.CancelledError:
            self._failures.remember(image, UNWANTED)
            raise

    async def _inspected_again(self, image_id: ImageId, caller: Caller) -> Ensured | None:
        """Look at a base of older rules by those of now, if its file is all that this needs."""
        cached = await self._catalog.image(image_id)
        if cached is None or cached.base_id is None or cached.standing is not Standing.ACTIVE:
            return None
        async with self.locks.hold(cached.base_id):
            base = await self._here(cached.base_id)
            if base is None or not is_as_it_came(base):
                return None
            if await self.trust.lacks(base, cached.image) != {Lack.INSPECTION}:
                return None
            proved = await self.renewal.proved(base, cached.image, caller)
        return None if proved is None else Ensured(proved, cached.image, CacheResult.HIT)

    async def _bring_in(self, image: GlanceImage, caller: Caller, meter: Meter) -> Ensured:
        if image.digest is None:
            async with (
                self._ingest.make(image, caller, meter) as made,
                self.locks.hold(made.manifest.base.base_id),
            ):
                return await uninterrupted(self._publish(image, made))
        async with self.locks.hold(image.digest.base_id):
            here = await self._here(image.digest.base_id)
            if here is not None:
                # Before anything is proved anew: what means another disk says nothing against it.
                admission.admit_alias(image, here.source_format, here.virtual_size, self._rules())
                proved = await self.renewal.proved(here, image, caller)
                if proved is not None:
                    base = await self._publishing.link(image, proved)
                    return Ensured(base, image, CacheResult.HIT)
            try:
                async with self._ingest.make(image, caller, meter) as made:
                    return await uninterrupted(self._publish(image, made))
            except ImageUnacceptableError as error:
                if here is not None:
                    self.trust.refuse(here, error)
                raise

    async def _publish(self, image: GlanceImage, made: Made) -> Ensured:
        here = await self._here(made.manifest.base.base_id)
        base, result = await self._publishing.publish(image, made, here)
        return Ensured(base, image, result)

    async def _describe(self, image_id: ImageId, caller: Caller) -> GlanceImage:
        """Ask Glance what the image is, and write down the intent to have it."""
        image = await self._glance.show(image_id, caller)
        admission.admit_description(image, self._rules())
        await self._room.retrying(lambda: self._catalog.intend_image(image, self._now()))
        return image

    async def _give_up(self, image_id: ImageId, error: ProblemError) -> None:
        """Forget an ingest that no retry can save; what a retry can save stays resumable."""
        _log.warning("no base", image_id=image_id, word=error.word, why=str(error))
        # A refusal of one tenant must not cost the others what has come.
        shared = isinstance(error, PERSONAL) and self._flights.waiters(image_id) > 1
        if not shared and not isinstance(error, RetryLaterError):
            await self._store.discard_ingest(image_id)
            await self._catalog.forget_image(image_id)
