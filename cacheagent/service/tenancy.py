"""Disks and instances as a tenant may see and touch them.

The agent does not know whose an instance is: that is its scheduler's business. What Glance can say
of a token is which images are its. So with a token an instance is there if the token may have
every image that its disks are made of. Without one it is an operator or a scheduler who asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.errors import (
    DiskConflictError,
    DiskNotFoundError,
    InstanceNotFoundError,
    OperatorOnlyError,
)
from cacheagent.policy.standing import is_seen_by_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from cacheagent.model import Caller, DiskKey, DiskSpec, DiskView, ImageId, InstanceId
    from cacheagent.service.access import Access
    from cacheagent.service.creation import Creation
    from cacheagent.service.disks import Disks
    from cacheagent.service.parts import Parts

FOREIGN = "this token may not have every image of the instance"
UNPROVED = "neither its image nor that of the first disk is private or shared, to tell whose it is"


class TenantDisks:
    """Asks for the caller's right, then the disks; satisfies ``api.services.DiskService``."""

    def __init__(self, parts: Parts, *, disks: Disks, access: Access, creation: Creation) -> None:
        self._catalog = parts.catalog
        self._disks = disks
        self._access = access
        self._creation = creation

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Create the disk, waiting for its base; the flag tells whether it was made now.

        Raises:
            DiskConflictError: a disk of another specification has the name, or the instance has
                disks and the caller may not see it.
            ProblemError: whatever else keeps it from being made; nothing is left behind.

        """
        await self._refuse_intruder(key.instance_id, spec, caller)
        try:
            return await self._disks.create(key, spec, caller)
        except DiskConflictError as error:
            raise await self._told(error, key, caller) from None

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Start to create the disk; it is ``pending`` in the answer unless it is there already.

        Raises:
            DiskConflictError: as ``create``.

        """
        await self._refuse_intruder(key.instance_id, spec, caller)
        try:
            return await self._disks.begin(key, spec, caller)
        except DiskConflictError as error:
            raise await self._told(error, key, caller) from None

    async def show(self, key: DiskKey, caller: Caller) -> DiskView:
        """Give the disk.

        Raises:
            DiskNotFoundError: the instance has no disk of this name, or none for the caller.

        """
        # Read before the right is asked for: what is asked about is what is shown.
        view = await self._disks.show(key)
        if not await self._may(key.instance_id, caller, [view]):
            raise DiskNotFoundError(f"instance {key.instance_id} has no disk {key.name}")
        return view

    async def delete(self, key: DiskKey, caller: Caller) -> None:
        """Remove the disk, and stop its creation.

        Raises:
            OperatorOnlyError: nothing proves that the disk is the caller's.

        """
        await self._refuse_foreign(key.instance_id, caller, key)
        await self._disks.delete(key)

    async def instances(
        self, caller: Caller
    ) -> AsyncGenerator[tuple[InstanceId, Sequence[DiskView]], None]:
        """Give every instance that the caller may see, with its disks, by id.

        All that can be refused is refused before the first.
        """
        if caller.token is None:
            async for found in self._disks.instances():
                yield found
            return
        allowed = await self._access.allowed(await self._all_images(), caller)
        async for instance_id, disks in self._disks.instances():
            if await self._images(instance_id, disks) <= allowed:
                yield instance_id, disks

    async def _all_images(self) -> frozenset[ImageId]:
        """Give the images of all disks, those that are being made too."""
        there = await self._catalog.images_of_disks()
        coming = (spec.image_id for spec in self._creation.wanted().values())
        return there.union(image_id for image_id in coming if image_id is not None)

    async def instance(self, instance_id: InstanceId, caller: Caller) -> Sequence[DiskView]:
        """Give the disks of the instance.

        Raises:
            InstanceNotFoundError: it has none, or none for the caller.

        """
        views = await self._disks.instance(instance_id)
        if not await self._may(instance_id, caller, views):
            raise InstanceNotFoundError(f"instance {instance_id} has no disks here")
        return views

    async def delete_instance(self, instance_id: InstanceId, caller: Caller) -> None:
        """Remove all disks of the instance, those that are being created too.

        Raises:
            OperatorOnlyError: nothing proves that the instance is the caller's.

        """
        await self._refuse_foreign(instance_id, caller)
        await self._disks.delete_instance(instance_id)

    async def _refuse_intruder(
        self, instance_id: InstanceId, spec: DiskSpec, caller: Caller
    ) -> None:
        """Keep strangers' disks out of an instance: they would hide it from its owner."""
        if await self._may(instance_id, caller):
            return
        if spec.image_id is not None:
            # Who may not have the image is told that first, wherever the disk would be.
            await self._access.check(spec.image_id, caller)
        raise DiskConflictError(FOREIGN, {})

    async def _refuse_foreign(
        self, instance_id: InstanceId, caller: Caller, key: DiskKey | None = None
    ) -> None:
        if caller.token is None:
            return
        # To say that it is removed would be a lie by which a scheduler loses a disk.
        if not await self._may(instance_id, caller):
            raise OperatorOnlyError(f"{FOREIGN}; it can be removed without a token")
        if await self._is_unproved(instance_id, key):
            raise OperatorOnlyError(f"{UNPROVED}; it can be removed without a token")

    async def _is_unproved(self, instance_id: InstanceId, key: DiskKey | None) -> bool:
        """Tell whether every project might have made the disk, or one of the instance's disks.

        A disk is known by its own image, or by that of the oldest disk: whoever came later had
        to have that image too. Of a public or a blank one a later disk may be a stranger's.
        """
        disks = await self._catalog.disks_of_instance(instance_id)
        wanted = self._creation.wanted().items()
        images = {each: spec.image_id for each, spec in wanted if each.instance_id == instance_id}
        images |= {disk.key: disk.image_id for disk in disks}
        if not images:
            return False
        first = min((disk.created_at for disk in disks), default=None)
        oldest = [disk.image_id for disk in disks if disk.created_at == first]
        if oldest and await self._are_of_some(oldest):
            return False
        return not await self._are_of_some(images.values() if key is None else [images.get(key)])

    async def _are_of_some(self, image_ids: Iterable[ImageId | None]) -> bool:
        """Tell whether all are images that only some projects may have."""
        for image_id in image_ids:
            cached = None if image_id is None else await self._catalog.image(image_id)
            if cached is None or is_seen_by_all(cached.image):
                return False
        return True

    async def _may(
        self, instance_id: InstanceId, caller: Caller, shown: Sequence[DiskView] = ()
    ) -> bool:
        if caller.token is None:
            return True
        asked: frozenset[ImageId] = frozenset()
        # While Glance thinks about some, a disk of another may come.
        while not (images := await self._images(instance_id, shown)) <= asked:
            if images != await self._access.allowed(images, caller):
                return False
            asked = images
        return True

    async def _images(
        self, instance_id: InstanceId, shown: Sequence[DiskView]
    ) -> frozenset[ImageId]:
        """Give the images of the instance's disks: shown, there now, and being made."""
        disks = await self._catalog.disks_of_instance(instance_id)
        there = [disk.image_id for disk in (*disks, *(view.disk for view in shown))]
        wanted = self._creation.wanted().items()
        coming = [spec.image_id for key, spec in wanted if key.instance_id == instance_id]
        return frozenset(image_id for image_id in (*there, *coming) if image_id is not None)

    async def _told(
        self, error: DiskConflictError, key: DiskKey, caller: Caller
    ) -> DiskConflictError:
        """Keep from the caller what the disk is, unless it may see the instance."""
        if await self._may(key.instance_id, caller):
            return error
        return DiskConflictError(FOREIGN, {})
