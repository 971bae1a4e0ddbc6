"""Images as an operator handles them: looked at, prefetched, pinned, evicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.backends.catalog import Held
from cacheagent.errors import BaseInUseError, ImageNotFoundError, OperatorOnlyError
from cacheagent.model import (
    BaseState,
    CachedImage,
    CacheResult,
    ImageState,
    ImageView,
    User,
    UserKind,
)
from cacheagent.policy.eviction import Reason
from cacheagent.policy.standing import is_seen_by_all
from cacheagent.service.access import refuse_tenant
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cacheagent.model import Base, BaseId, Caller, ImageId
    from cacheagent.service.access import Access
    from cacheagent.service.bases import Bases
    from cacheagent.service.eviction import Evictions
    from cacheagent.service.failures import Failure
    from cacheagent.service.parts import Parts

PINNING = "pinning"

_PAGE = 4
"""Images of a list that are looked at in one step; between steps others have their turn."""


class Images:
    """What is cached or coming; satisfies ``api.services.ImageService``."""

    def __init__(self, parts: Parts, *, bases: Bases, access: Access, evictions: Evictions) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._background = parts.background
        self._room = parts.room
        self._evictions = evictions
        self._bases = bases
        self._access = access
        self._prefetching: set[ImageId] = set()

    async def list_images(self, caller: Caller) -> AsyncGenerator[ImageView, None]:
        """Give every image that is cached or coming, and that the caller may have, by id.

        All that can be refused is refused before the first.

        Raises:
            UnauthenticatedError: nobody knows the caller's token.
            GlanceUnavailableError: Glance cannot tell what the caller may have.

        """
        known = (await self._catalog.image_states()).keys()
        allowed = await self._access.allowed({*self._bases.failures(), *known}, caller)
        mine = sorted(allowed)
        for begin in range(0, len(mine), _PAGE):
            for held in await self._held(mine[begin : begin + _PAGE]):
                yield await self._view(held, caller)

    async def show(self, image_id: ImageId, caller: Caller) -> ImageView:
        """Give the image with all who use it.

        Raises:
            ImageNotFoundError: it is neither cached nor coming.

        """
        await self._access.check(image_id, caller)
        return await self._view(await self._one(image_id), caller)

    async def prefetch(
        self, image_id: ImageId, caller: Caller, *, pin: bool, wait: bool
    ) -> tuple[ImageView, CacheResult]:
        """Bring the image in, and tell what the request found.

        With ``wait`` the image is ready in the answer, else it is on its way.

        Raises:
            ProblemError: why it cannot come; without ``wait`` only what Glance says at once.
            OperatorOnlyError: it is to be pinned, and the caller bears a token.

        """
        await self._access.check(image_id, caller)
        if pin:
            refuse_tenant(caller, PINNING)
        if wait or await self._bases.ready(image_id) is not None:
            ensured = await self._bases.leased(image_id, caller, "a prefetch that is about to end")
            try:
                return await self._fetched(image_id, ensured.result, caller, pin=pin)
            finally:
                await self._bases.release(ensured)
        # Whoever goes away now leaves no intent that nobody works on.
        result = await uninterrupted(self._begin(image_id, caller))
        return await self._fetched(image_id, result, caller, pin=pin)

    async def _fetched(
        self, image_id: ImageId, result: CacheResult, caller: Caller, *, pin: bool
    ) -> tuple[ImageView, CacheResult]:
        if pin:
            await self._pin(image_id)
        return await self._view(await self._one(image_id), caller), result

    async def _begin(self, image_id: ImageId, caller: Caller) -> CacheResult:
        """Write down that the image is to come, and wait for it in the background."""
        await self._bases.announce(image_id, caller)
        result = await self._bases.outlook(image_id)
        if image_id not in self._prefetching:
            self._prefetching.add(image_id)
            self._background.start(self._fetch(image_id, caller), "prefetch of an image")
        return result

    async def _fetch(self, image_id: ImageId, caller: Caller) -> None:
        """Wait for the image on behalf of all who asked for it and did not wait."""
        try:
            await self._bases.ensure(image_id, caller)
        finally:
            self._prefetching.discard(image_id)

    async def pin(self, image_id: ImageId, caller: Caller) -> None:
        """Keep the image from eviction until it is unpinned.

        Raises:
            ImageNotFoundError: it is neither cached nor coming, or failed and left nothing.
            OperatorOnlyError: the caller bears a token; a pin takes its room from all.

        """
        await self._access.check(image_id, caller)
        refuse_tenant(caller, PINNING)
        if await self._catalog.image(image_id) is None:
            raise _unknown(image_id)
        await self._pin(image_id)

    async def _pin(self, image_id: ImageId) -> None:
        await self._room.retrying(lambda: self._catalog.pin(image_id, self._now()))

    async def unpin(self, image_id: ImageId, caller: Caller) -> None:
        """Take the pin away.

        Raises:
            ImageNotFoundError: the image is neither cached nor coming.
            OperatorOnlyError: the caller bears a token; a pin is the operator's.

        """
        await self._access.check(image_id, caller)
        refuse_tenant(caller, PINNING)
        await self._known(image_id)
        await self._room.retrying(lambda: self._catalog.unpin(image_id))

    async def evict(self, image_id: ImageId, caller: Caller) -> None:
        """Remove the base of the image now, and forget what it stood for.

        Raises:
            ImageNotFoundError: it is neither cached nor coming.
            BaseInUseError: somebody uses it, or that cannot be told.
            OperatorOnlyError: the base is that of images as well that the caller may not have, or
                that every project may.

        """
        await self._access.check(image_id, caller)
        cached = await self._known(image_id)
        if image_id in self._bases.coming():
            raise _in_use(image_id, (User(kind=UserKind.WAITER),))
        if cached.base_id is None:
            await self._bases.forget(image_id)
            return
        await self._refuse_shared(cached.base_id, caller)
        base = await self._catalog.base(cached.base_id)
        if base is not None and (users := await self._evictions.evict(base, Reason.OPERATOR)):
            raise _in_use(image_id, told(users, caller))

    async def _refuse_shared(self, base_id: BaseId, caller: Caller) -> None:
        if caller.token is None:
            return
        images = [each.image for each in await self._catalog.images_of(base_id)]
        known = {image.image_id for image in images}
        foreign = any(map(is_seen_by_all, images))
        if foreign or known != await self._access.allowed(known, caller):
            raise OperatorOnlyError(
                "the base stands for a public image, or for others that this token may not have"
            )

    async def _known(self, image_id: ImageId) -> CachedImage:
        cached = await self._catalog.image(image_id)
        if cached is None and (failure := self._bases.failures().get(image_id)):
            cached = _failed(failure)
        if cached is None:
            raise _unknown(image_id)
        return cached

    async def _one(self, image_id: ImageId) -> Held:
        for held in await self._held([image_id]):
            return held
        raise _unknown(image_id)

    async def _held(self, image_ids: Sequence[ImageId]) -> list[Held]:
        """Look at some images in one step; one that has gone meanwhile is left out."""
        known = await self._catalog.held(image_ids, self._now())
        found = {each.cached.image.image_id: each for each in known}
        for image_id, failure in self._bases.failures().items():
            found.setdefault(image_id, Held(cached=_failed(failure)))
        return [found[each] for each in image_ids if each in found]

    async def _view(self, held: Held, caller: Caller) -> ImageView:
        cached, base = held.cached, held.base
        image_id = cached.image.image_id
        waiting = self._bases.waiters(image_id)
        progress = self._bases.progress(image_id)
        failure = self._bases.failures().get(image_id)
        trust = self._bases.trust
        refused = None if base is None else trust.why_refused(base)
        return ImageView(
            image=cached.image,
            state=ImageState(progress.phase) if progress else self._state(image_id, base),
            base=base,
            base_path=None if base is None else self._store.layout.base(base.base_id, base.format),
            progress=progress,
            pinned=held.pinned,
            users=(
                *told(held.users, caller),
                *(User(kind=UserKind.WAITER) for _ in range(waiting)),
            ),
            error=(None if failure is None else failure.why) or refused,
            withheld=None if base is None else await trust.withheld(base, cached.image),
        )

    def _state(self, image_id: ImageId, base: Base | None) -> ImageState:
        if base is not None:
            refused = self._bases.trust.why_refused(base) is not None
            quarantined = refused or base.state is BaseState.QUARANTINED
            return ImageState.QUARANTINED if quarantined else ImageState.READY
        failed = image_id in self._bases.failures()
        return ImageState.FAILED if failed else ImageState.QUEUED


def told(users: Sequence[User], caller: Caller) -> tuple[User, ...]:
    """Give the users as the caller may know them: a base may be of others' images as well."""
    return tuple(users if caller.token is None else (user.unnamed() for user in users))


def _unknown(image_id: ImageId) -> ImageNotFoundError:
    return ImageNotFoundError(f"image {image_id} is neither cached nor coming")


def _failed(failure: Failure) -> CachedImage:
    """Show an image that did not come like one that is coming; its state tells the difference."""
    return CachedImage(image=failure.image, base_id=None, requested_at=failure.at)


def _in_use(image_id: ImageId, users: Sequence[User]) -> BaseInUseError:
    described = [user.facts() for user in users]
    return BaseInUseError(f"the base of image {image_id} is in use", described)
