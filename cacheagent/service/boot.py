"""Kernel and ramdisk of an AMI, created before the disk that they start is there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from cacheagent.model import DiskState
from cacheagent.policy.boot import admit_boot_image, boot_disks
from cacheagent.service.intent import is_meant

if TYPE_CHECKING:
    from cacheagent.model import Caller, DiskKey, DiskSpec, GlanceImage
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts


class _Create(Protocol):
    """Creates a disk, as ``Creation.create`` does."""

    async def __call__(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> object: ...


class Boot:
    """Has the two created as disks of their own, by ``create``.

    Whatever is wrong with them keeps the disk from being made that needs them; those that were
    made stay.
    """

    def __init__(self, parts: Parts, *, bases: Bases, create: _Create) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._bases = bases
        self._create = create

    async def bring(
        self, key: DiskKey, image: GlanceImage | None, caller: Caller, *, again: bool = False
    ) -> None:
        """Have what a disk that is made of ``image`` needs beside it.

        Asked for ``again``, those that were made are found: these full copies need their bases
        no more.

        Raises:
            ImageUnacceptableError: with ``boot-image``: an image is not what it is named as.
            ProblemError: whatever else keeps them from being made.

        """
        for name, spec in () if image is None else boot_disks(key.name, image).items():
            assert spec.image_id is not None  # noqa: S101 -- that is what they are made of
            boot = replace(key, name=name)
            if again and await self._lies_there(boot, spec):
                await self._bases.access.check(spec.image_id, caller)
                continue
            ensured = await self._bases.ensure(spec.image_id, caller)
            admit_boot_image(name, ensured.image)
            await self._create(boot, spec, caller)

    async def bring_again(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> None:
        """Have what a disk that is there needs beside it; ``spec`` is that of the disk.

        Raises: as ``bring``.
        """
        cached = None if spec.image_id is None else await self._catalog.image(spec.image_id)
        await self.bring(key, None if cached is None else cached.image, caller, again=True)

    async def _lies_there(self, key: DiskKey, spec: DiskSpec) -> bool:
        disk = await self._catalog.disk(key)
        if disk is None or disk.state is not DiskState.READY:
            return False
        if not await is_meant(disk, spec, self._catalog):
            return False
        return await self._store.exists(self._store.layout.disk(key, disk.format))
