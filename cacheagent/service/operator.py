"""What an operator asks of the cache: why an image stays, and that room is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheagent.errors import OperatorOnlyError
from cacheagent.policy.eviction import Demand, DemandKind, Eviction, EvictionPlan, Stay
from cacheagent.policy.quarantine import Refused
from cacheagent.policy.verdict import Why, find_verdict, summary
from cacheagent.service.images import told
from cacheagent.service.removal import Skipped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cacheagent.model import Caller, ImageId
    from cacheagent.service.access import Access
    from cacheagent.service.eviction import Evictions
    from cacheagent.service.images import Images
    from cacheagent.service.outcome import Pass
    from cacheagent.service.parts import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pass did, or would do in a ``dry_run``.

    ``dropped`` are the refused images that went, or would go, from quarantine, ``evicted`` the
    bases, in order; ``skipped`` has what should have gone and turned out to be in use.
    ``freed_bytes`` are measured, in a dry run planned; ``needed_bytes`` is the largest shortage,
    ``unmet_bytes`` and ``unmet_inodes`` what is short still.
    """

    dry_run: bool
    evicted: tuple[Eviction, ...]
    stay: tuple[Stay, ...]
    skipped: tuple[Skipped, ...]
    needed_bytes: int
    freed_bytes: int
    unmet_bytes: int
    unmet_inodes: int
    dropped: tuple[Refused, ...]


class Operator:
    """Satisfies ``api.services.OperatorService``."""

    def __init__(
        self, parts: Parts, *, images: Images, evictions: Evictions, access: Access
    ) -> None:
        self._catalog = parts.catalog
        self._room = parts.room
        self._bounds = parts.bounds
        self._images = images
        self._evictions = evictions
        self._access = access

    async def why(self, image_id: ImageId, caller: Caller) -> Why:
        """Say why the image stays, or when it goes.

        Raises:
            ImageNotFoundError: it is neither cached nor coming.

        """
        view = await self._images.show(image_id, caller)
        plan = await self._evictions.plan()
        base = view.base
        verdict = None if base is None else find_verdict(plan, base.base_id)
        if verdict is not None:
            verdict = replace(verdict, users=told(verdict.users, caller))
        return Why(
            view=view,
            verdict=verdict,
            snapshot=await self._room.snapshot(),
            policy=self._bounds(),
            needed_bytes=plan.needed_bytes,
            summary=summary(view, verdict),
        )

    async def prune(self, caller: Caller, *, dry_run: bool, free_bytes: int | None) -> Pruned:
        """Make one pass: free so many bytes, or without them what the bounds ask for.

        A caller with a token is shown the bases of images that it may have, and no others; the
        sums are those of the whole pass.

        Raises:
            OperatorOnlyError: a token does not make a pass, which is about everybody's images.
            UnauthenticatedError: nobody knows the caller's token.
            GlanceUnavailableError: Glance cannot tell what the caller may have.

        """
        if caller.token is not None and not dry_run:
            raise OperatorOnlyError("with a tenant's token a pass can only be planned: dry_run")
        allowed = await self._allowed(caller)
        demand = None if free_bytes is None else Demand(DemandKind.OPERATOR, free_bytes)
        if dry_run:
            pruned = _planned(await self._evictions.plan(demand))
        else:
            pruned = _done(await self._evictions.run("operator", demand))
        return pruned if allowed is None else _seen(pruned, allowed, caller)

    async def _allowed(self, caller: Caller) -> Collection[ImageId] | None:
        """Give the images that the caller may see; None: all of them.

        It is found out before anything goes, and what Glance cannot tell stops it.
        """
        if caller.token is None:
            return None
        known = [cached.image.image_id for cached in await self._catalog.images()]
        return await self._access.allowed(known, caller)


def _planned(plan: EvictionPlan) -> Pruned:
    return Pruned(
        dry_run=True,
        evicted=plan.evict,
        stay=plan.stay,
        skipped=(),
        needed_bytes=plan.needed_bytes,
        freed_bytes=plan.freed_bytes,
        unmet_bytes=plan.unmet_bytes,
        unmet_inodes=plan.unmet_inodes,
        dropped=plan.drop,
    )


def _done(done: Pass) -> Pruned:
    return replace(
        _planned(done.plan),
        dry_run=False,
        evicted=done.evicted,
        dropped=done.dropped,
        skipped=done.skipped,
        freed_bytes=done.freed_bytes,
    )


def _seen(pruned: Pruned, allowed: Collection[ImageId], caller: Caller) -> Pruned:
    """Leave out what the caller may not see: bases of other images, and other images of a base."""

    def mine(images: Iterable[ImageId]) -> tuple[ImageId, ...]:
        return tuple(each for each in images if each in allowed)

    return replace(
        pruned,
        evicted=tuple(
            replace(each, images=images) for each in pruned.evicted if (images := mine(each.images))
        ),
        dropped=tuple(each for each in pruned.dropped if each.name.image_id in allowed),
        stay=tuple(
            replace(each, images=images, users=told(each.users, caller))
            for each in pruned.stay
            if (images := mine(each.images))
        ),
    )
