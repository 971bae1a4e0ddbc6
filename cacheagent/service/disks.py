"""Disks and the instances that own them, as a scheduler handles them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import Around
from cacheagent.errors import DiskNotFoundError, InstanceNotFoundError
from cacheagent.model import DiskView
from cacheagent.policy.boot import BOOT_FORMATS, may_boot
from cacheagent.service.intent import pending
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence

    from cacheagent.model import (
        Base,
        BaseId,
        CachedImage,
        Caller,
        Disk,
        DiskKey,
        DiskSpec,
        ImageId,
        InstanceId,
    )
    from cacheagent.service.access import Access
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts


_PAGE = 32
"""Instances of a list that are read in one step; between steps others have their turn."""


class Disks:
    """Creates, shows and removes disks; satisfies ``api.services.DiskService``."""

    def __init__(self, parts: Parts, *, access: Access, creation: Creation) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._layout = parts.store.layout
        self._access = access
        self._creation = creation

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Create the disk, waiting for its base; the flag tells whether it was made now.

        Raises:
            DiskConflictError: a disk of another specification has the name.
            ProblemError: whatever else keeps it from being made; nothing is left behind.

        """
        await self._check_access(spec, caller)
        made = await self._creation.create(key, spec, caller)
        if made.alone:
            return self._shown(made.disk, made.base), made.anew
        return await self._view(made.disk), made.anew

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Start to create the disk; it is ``pending`` in the answer unless it is there already.

        Raises:
            DiskConflictError: a disk of another specification has the name.

        """
        await self._check_access(spec, caller)
        disk, begun = await self._creation.begin(key, spec, caller)
        return await self._view(disk), begun

    async def show(self, key: DiskKey) -> DiskView:
        """Give the disk.

        Raises:
            DiskNotFoundError: the instance has no disk of this name.

        """
        found = await self._catalog.disk_around(key, BOOT_FORMATS)
        if found is not None:
            return self._told(*found)
        spec = self._creation.wanted().get(key)
        if spec is None:
            raise DiskNotFoundError(f"instance {key.instance_id} has no disk {key.name}")
        return await self._view(pending(key, spec, self._now()))

    async def delete(self, key: DiskKey) -> None:
        """Remove the disk, and stop its creation."""
        await uninterrupted(self._creation.remove(key))

    async def instances(self) -> AsyncGenerator[tuple[InstanceId, Sequence[DiskView]], None]:
        """Give every instance with its disks, by id."""
        bases: dict[BaseId | None, Base | None] = {}
        last = None
        while disks := await self._catalog.next_disks(last, _PAGE):
            # Each is read once, were it lost.
            bases |= await self._bases(disks, bases)
            images = await self._images(disks)
            for instance_id, own in groupby(disks, lambda disk: disk.key.instance_id):
                last = instance_id
                yield instance_id, self._views(list(own), bases, images)

    async def instance(self, instance_id: InstanceId) -> Sequence[DiskView]:
        """Give the disks of the instance.

        Raises:
            InstanceNotFoundError: it has none.

        """
        disks = await self._catalog.disks_of_instance(instance_id)
        if not disks:
            raise InstanceNotFoundError(f"instance {instance_id} has no disks here")
        return self._views(disks, await self._bases(disks), await self._images(disks))

    async def delete_instance(self, instance_id: InstanceId) -> None:
        """Remove all disks of the instance, those that are being created too."""
        # While the first disks go, a kernel may still come for one of them.
        for _ in range(2):
            disks = await self._catalog.disks_of_instance(instance_id)
            coming = (key for key in self._creation.wanted() if key.instance_id == instance_id)
            keys = {*(disk.key for disk in disks), *coming}
            for key in sorted(keys, key=lambda each: each.name in BOOT_FORMATS):
                await self.delete(key)

    async def _check_access(self, spec: DiskSpec, caller: Caller) -> None:
        if spec.image_id is not None:
            await self._access.check(spec.image_id, caller)

    async def _view(self, disk: Disk) -> DiskView:
        if disk.image_id is None and disk.base_id is None:
            return self._shown(disk, None)
        return self._told(disk, await self._catalog.around(disk, BOOT_FORMATS))

    def _told(self, disk: Disk, around: Around) -> DiskView:
        boot = around.disks if may_boot(disk, around.base, around.image) else ()
        return self._shown(disk, around.base, boot)

    async def _bases(
        self, disks: Sequence[Disk], known: Collection[BaseId | None] = ()
    ) -> dict[BaseId | None, Base | None]:
        """Give the bases of the disks beyond those that are known; None for one that is lost."""
        new = {disk.base_id for disk in disks if disk.base_id is not None}.difference(known)
        if not new:
            return {}
        found = await self._catalog.bases_named(new)
        return {**dict.fromkeys(new), **{base.base_id: base for base in found}}

    async def _images(self, disks: Sequence[Disk]) -> dict[ImageId | None, CachedImage]:
        """Give the images of the disks, unless no kernel is among these."""
        if not any(disk.key.name in BOOT_FORMATS for disk in disks):
            return {}
        wanted = {disk.image_id for disk in disks if disk.image_id is not None}
        return {each.image.image_id: each for each in await self._catalog.images_named(wanted)}

    def _views(
        self,
        disks: Sequence[Disk],
        bases: Mapping[BaseId | None, Base | None],
        images: Mapping[ImageId | None, CachedImage],
    ) -> list[DiskView]:
        """Give the disks of one instance as they are shown."""
        boot = tuple(disk for disk in disks if disk.key.name in BOOT_FORMATS)
        return [
            self._told(
                disk,
                Around(base=bases.get(disk.base_id), image=images.get(disk.image_id), disks=boot),
            )
            for disk in disks
        ]

    def _shown(self, disk: Disk, base: Base | None, boot: Iterable[Disk] = ()) -> DiskView:
        return DiskView(
            boot=tuple(self._shown(each, None) for each in boot),
            disk=disk,
            path=self._layout.disk(disk.key, disk.format),
            base=base,
            base_path=None if base is None else self._layout.base(base.base_id, base.format),
        )
