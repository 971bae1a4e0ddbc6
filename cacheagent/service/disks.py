"""Disks: made once per name, the same request answers with the same disk."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.catalog import DiskIntent
from cacheagent.errors import (
    CacheAgentError,
    DiskConflictError,
    DiskNotFoundError,
    InstanceNotFoundError,
)
from cacheagent.model import (
    CacheResult,
    Disk,
    DiskState,
    DiskView,
)
from cacheagent.policy.sizing import disk_size, whole_sectors
from cacheagent.sync.keylock import KeyLock
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cacheagent.model import Base, BaseId, Caller, DiskKey, DiskSpec, InstanceId
    from cacheagent.service.access import Access
    from cacheagent.service.bases import Bases, Ensured
    from cacheagent.service.making import Making
    from cacheagent.service.parts import Parts

_log = structlog.get_logger(__name__)


class Disks:
    """Creates, shows and removes disks; satisfies ``api.services.DiskService``."""

    def __init__(self, parts: Parts, *, bases: Bases, access: Access, making: Making) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._background = parts.background
        self._seconds = parts.metrics.disk_create_seconds
        self._bases = bases
        self._access = access
        self._making = making
        self._locks: KeyLock[DiskKey] = KeyLock()
        self._begun: dict[DiskKey, asyncio.Task[None]] = {}

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Create the disk, waiting for its base; the flag tells whether it was made now.

        Raises:
            DiskConflictError: a disk of another specification has the name.
            ProblemError: whatever else keeps it from being made; nothing is left behind.

        """
        if self._locks.held(key):
            await self._existing(key, spec)  # a conflict need not wait for the other's end
        async with self._locks.hold(key):
            disk = await self._existing(key, spec)
            if disk is not None and disk.state is DiskState.READY:
                await self._check_access(spec, caller)
                return await self._view(disk), False
            try:
                disk = await self._create(key, spec, caller)
            except BaseException:
                if key not in self._begun:  # else it is for who begins it to say how it ends
                    await self._forget_intent(key)
                raise
            return await self._view(disk), True

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Start to create the disk; it is ``pending`` in the answer unless it is there already.

        Raises:
            DiskConflictError: a disk of another specification has the name.

        """
        await self._check_access(spec, caller)
        disk = await self._existing(key, spec)
        if disk is None or disk.state is DiskState.FAILED:
            async with self._locks.hold(key):
                disk = await self._existing(key, spec)
                if disk is None or disk.state is DiskState.FAILED:
                    return await self._begin(key, spec, caller), True
        return await self._view(disk), False

    async def _begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> DiskView:
        disk = _pending(key, spec)
        await self._catalog.begin_disk(disk)
        task = self._background.task(self._finish(key, spec, caller), "creation of a disk")
        self._begun[key] = task
        task.add_done_callback(lambda _: self._begun.pop(key, None))
        return await self._view(disk)

    async def show(self, key: DiskKey) -> DiskView:
        """Give the disk.

        Raises:
            DiskNotFoundError: the instance has no disk of this name.

        """
        disk = await self._catalog.disk(key)
        if disk is None:
            raise DiskNotFoundError(f"instance {key.instance_id} has no disk {key.name}")
        return await self._view(disk)

    async def delete(self, key: DiskKey) -> None:
        """Remove the disk, and stop its creation where that was begun without waiting."""
        if (task := self._begun.get(key)) is not None:
            task.cancel()
            await asyncio.wait({task})
        async with self._locks.hold(key):
            await uninterrupted(self._remove(key))

    async def _remove(self, key: DiskKey) -> None:
        """Remove the file, then the row: a crash in between leaves a row that goes at the start."""
        disk = await self._catalog.disk(key)
        if disk is None:
            return
        if disk.state is DiskState.READY:
            await self._store.remove_disk(key, disk.format)
        else:
            # It has no file: what lies under its name is somebody else's.
            await self._store.abandon_disk(key)
        await self._catalog.remove_disk(key, datetime.now(UTC))

    async def instances(self) -> Mapping[InstanceId, Sequence[DiskView]]:
        """Give every instance with its disks."""
        found: dict[InstanceId, list[DiskView]] = defaultdict(list)
        for view in await self._views(await self._catalog.disks()):
            found[view.disk.key.instance_id].append(view)
        return found

    async def instance(self, instance_id: InstanceId) -> Sequence[DiskView]:
        """Give the disks of the instance.

        Raises:
            InstanceNotFoundError: it has none.

        """
        disks = await self._catalog.disks_of_instance(instance_id)
        if not disks:
            raise InstanceNotFoundError(f"instance {instance_id} has no disks here")
        return await self._views(disks)

    async def delete_instance(self, instance_id: InstanceId) -> None:
        """Remove all disks of the instance."""
        for disk in await self._catalog.disks_of_instance(instance_id):
            await self.delete(disk.key)

    async def _existing(self, key: DiskKey, spec: DiskSpec) -> Disk | None:
        """Give what has the name, if that is what ``spec`` asks for; a lost file counts as none.

        Raises:
            DiskConflictError: it is something else.

        """
        disk = await self._catalog.disk(key)
        if disk is None:
            return None
        if disk.state is DiskState.READY:
            path = self._store.layout.disk(key, disk.format)
            if not await self._store.exists(path):
                _log.warning("a disk has gone from its folder", path=str(path))
                await self._catalog.remove_disk(key, datetime.now(UTC))
                return None
        if disk.state is not DiskState.FAILED and not await self._is(disk, spec):
            raise DiskConflictError(
                f"disk {key.name} of instance {key.instance_id} is another one", _facts(disk)
            )
        return disk

    async def _is(self, disk: Disk, spec: DiskSpec) -> bool:
        """Tell whether ``spec`` means this disk; one that was adopted is judged by what it is."""
        if spec.size is not None and whole_sectors(spec.size) == disk.virtual_size:
            spec = replace(spec, size=disk.spec.size if disk.spec else None)
        if disk.spec is not None:
            return disk.spec == spec
        cached = None if spec.image_id is None else await self._catalog.image(spec.image_id)
        base_id = None if cached is None else cached.base_id
        return (disk.format, disk.mode, disk.base_id, None) == (
            spec.format,
            spec.mode,
            base_id,
            spec.size,
        )

    async def _check_access(self, spec: DiskSpec, caller: Caller) -> None:
        if spec.image_id is not None:
            await self._access.check(spec.image_id, caller)

    async def _finish(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> None:
        """Create a disk that was begun; its row tells how that ends."""
        async with self._locks.hold(key):
            disk = await self._catalog.disk(key)
            if disk is not None and disk.state is DiskState.READY:
                return  # somebody who waits for it came first
            try:
                await self._create(key, spec, caller)
            except CacheAgentError as error:
                await self._catalog.fail_disk(key, str(error))
                raise
            except Exception:
                await self._catalog.fail_disk(key, "internal error; see the agent's log")
                raise

    async def _create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> Disk:
        """Take the base, write the intent, make the file, write the result; the key is held."""
        while True:
            ensured = await self._ensure(spec, caller)
            disk = _intended(key, spec, ensured)
            if await self._catalog.begin_disk(disk) is not DiskIntent.BASE_GONE:
                break
            # The base was evicted after it was found, and before the intent to use it stood.
        with self._seconds.labels(mode=spec.mode).time():
            # From here on it takes milliseconds: who goes away now finds the disk made.
            return await uninterrupted(self._make(disk, spec, ensured))

    async def _make(self, disk: Disk, spec: DiskSpec, ensured: Ensured | None) -> Disk:
        """Make the file of a disk whose intent stands, and write down that it is there."""
        base = None if ensured is None else ensured.base
        try:
            await self._making.make(disk.key, spec, disk.virtual_size, base)
        except FileExistsError as error:
            path = str(self._store.layout.disk(disk.key, spec.format))
            raise DiskConflictError(f"{path} is there, and not ours", {"path": path}) from error
        now = datetime.now(UTC)
        try:
            return await self._catalog.finish_disk(
                disk.key, virtual_size=disk.virtual_size, now=now
            )
        except BaseException:
            await self._store.remove_disk(disk.key, spec.format)
            raise

    async def _forget_intent(self, key: DiskKey) -> None:
        """Drop the row of a disk that was not made after all."""
        disk = await self._catalog.disk(key)
        if disk is not None and disk.state is DiskState.PENDING:
            await self._catalog.remove_disk(key, datetime.now(UTC))

    async def _ensure(self, spec: DiskSpec, caller: Caller) -> Ensured | None:
        return None if spec.image_id is None else await self._bases.ensure(spec.image_id, caller)

    async def _view(self, disk: Disk) -> DiskView:
        base = None if disk.base_id is None else await self._catalog.base(disk.base_id)
        return self._shown(disk, base)

    async def _views(self, disks: Sequence[Disk]) -> list[DiskView]:
        bases: dict[BaseId | None, Base] = {b.base_id: b for b in await self._catalog.bases()}
        return [self._shown(disk, bases.get(disk.base_id)) for disk in disks]

    def _shown(self, disk: Disk, base: Base | None) -> DiskView:
        layout = self._store.layout
        return DiskView(
            disk=disk,
            path=layout.disk(disk.key, disk.format),
            base=base,
            base_path=None if base is None else layout.base(base.base_id, base.format),
        )


def _facts(disk: Disk) -> dict[str, object]:
    """Give what tells the disk from another one, by the names that the API uses."""
    facts: dict[str, object] = {
        "image_id": disk.image_id,
        "format": disk.format,
        "mode": disk.mode,
        "virtual_size_bytes": disk.virtual_size,
    }
    if disk.spec is not None and disk.image_id is None:
        facts |= {"filesystem": disk.spec.filesystem, "label": disk.spec.label}
    return facts


def _pending(key: DiskKey, spec: DiskSpec) -> Disk:
    """Give a disk that is asked for and not there, before anything is known of its base."""
    return Disk(
        key=key,
        spec=spec,
        state=DiskState.PENDING,
        format=spec.format,
        mode=spec.mode,
        virtual_size=0,
        image_id=spec.image_id,
        base_id=None,
        cache=CacheResult.BLANK if spec.image_id is None else CacheResult.MISS,
        created_at=datetime.now(UTC),
    )


def _intended(key: DiskKey, spec: DiskSpec, ensured: Ensured | None) -> Disk:
    """Give the disk as it will be.

    Raises:
        DiskTooSmallError: the size asked for breaks the size rules.

    """
    disk = _pending(key, spec)
    if ensured is None:
        return replace(disk, virtual_size=whole_sectors(spec.size or 0))
    size = disk_size(
        spec.size,
        virtual_size=ensured.base.virtual_size,
        min_disk=ensured.image.min_disk_bytes,
    )
    return replace(disk, virtual_size=size, base_id=ensured.base.base_id, cache=ensured.result)
