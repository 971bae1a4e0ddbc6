"""A disk comes about: one creation at a time for each name, shared by all who ask for the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import DiskIntent
from cacheagent.errors import CacheAgentError, DiskConflictError, ShuttingDownError
from cacheagent.model import Base, CacheResult, Disk, DiskState, Standing
from cacheagent.policy.boot import is_ami
from cacheagent.service.atonce import AtOnce
from cacheagent.service.bases import PERSONAL, Ensured, PersonalError
from cacheagent.service.boot import Boot
from cacheagent.service.despite import despite_full
from cacheagent.service.events import EventKind
from cacheagent.service.instances import Instances
from cacheagent.service.intent import conflict, intended, is_meant, not_ours, pending
from cacheagent.service.making import BaseGoneError
from cacheagent.service.wanted import Wanted
from cacheagent.sync.keylock import KeyLock
from cacheagent.sync.singleflight import SingleFlight
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cacheagent.backends.store import Template
    from cacheagent.model import CachedImage, Caller, DiskKey, DiskSpec
    from cacheagent.service.bases import Bases
    from cacheagent.service.making import Making
    from cacheagent.service.parts import Parts

    Claimed = tuple[Ensured | None, Disk]
    """What a disk is made of, and its intent, which is written down."""

DELETED_OUTSIDE = "deleted outside"
"""Why a disk went that nobody asked the agent to remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A disk that is there, whether it was made just now, and its base where that is known.

    ``alone``: it is known that no kernel belongs to it.
    """

    disk: Disk
    base: Base | None
    anew: bool
    alone: bool


class Creation:
    """Creates and removes disks, and keeps the two apart by a lock on the name of the disk."""

    def __init__(self, parts: Parts, *, bases: Bases, making: Making) -> None:
        self._catalog = parts.catalog
        self._now = parts.now
        self._store = parts.store
        self._background = parts.background
        self._room = parts.room
        self._disk_room = parts.disk_room
        self._seconds = parts.metrics.disk_create_seconds
        self._saved = parts.metrics.bytes_saved_total
        self._events = parts.events
        self._bases = bases
        self._making = making
        self._boot = Boot(parts, bases=bases, create=self.create)
        self._clock = parts.clock
        self._instances = Instances(parts)
        self._at_once = AtOnce(parts, self._tell_of)
        self._locks: KeyLock[DiskKey] = KeyLock()
        self._runs: SingleFlight[DiskKey, Created] = SingleFlight()
        self._wanted = Wanted(parts.now)

    def wanted(self) -> Mapping[DiskKey, DiskSpec]:
        """Give the disks that are being created, and as what, as it changes."""
        return self._wanted.specs

    def alone(self, key: DiskKey) -> AbstractAsyncContextManager[None]:
        """Keep whoever creates or removes the disk waiting for the body of an ``async with``."""
        return self._locks.hold(key)

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> Created:
        """Give the disk; waits for its base.

        Raises:
            DiskConflictError: the name stands for another disk, or that is being made.
            ProblemError: whatever else keeps it from being made; nothing is left behind.

        """
        while True:
            try:
                with self._wanted.asked(key, spec):
                    made, joined = await self._runs.run(key, lambda: self._run(key, spec, caller))
            except PersonalError as refused:
                # It ran with the token of somebody else, who may not have the image.
                if refused.token == caller.token:
                    raise refused.error from None
                continue
            return replace(made, anew=made.anew and not joined)

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[Disk, bool]:
        """Give the disk if it is there, else begin to create it; the flag tells of the latter.

        Raises:
            DiskConflictError: the name stands for another disk, or that is being made.

        """
        self._wanted.refuse_another(key, spec)
        disk = await self._expected(key, spec)
        # Whoever goes away now leaves no intent that nobody works on.
        return await uninterrupted(self._begin(disk, spec, caller))

    async def _begin(self, disk: Disk, spec: DiskSpec, caller: Caller) -> tuple[Disk, bool]:
        key = disk.key
        # Who asks for another one from here on is refused: its run would pass over this row.
        with self._wanted.asked(key, spec) as first:
            # A run holds the lock until its base has come: that is not waited for.
            if first or await self._is_ready(key):
                async with self._locks.hold(key):
                    existing = await self._existing(key, spec)
                    if existing is not None and existing.state is DiskState.READY:
                        return existing, False
                    await self._room.retrying(partial(self._catalog.begin_disk, disk))
            if not self._wanted.promise(key, spec):
                return disk, False
        self._background.start(self._finish(key, spec, caller), "creation of a disk")
        return disk, True

    async def _is_ready(self, key: DiskKey) -> bool:
        disk = await self._catalog.disk(key)
        return disk is not None and disk.state is DiskState.READY

    async def remove(self, key: DiskKey) -> None:
        """Remove the disk, and stop its creation; who waits for that is told."""
        gone = DiskConflictError("the disk was deleted while it was made", {})
        # One that was begun and does not run yet is not to begin at all.
        self._wanted.end_promise(key)
        await self._runs.stop(key, gone)
        async with self._locks.hold(key):
            disk = await self._catalog.disk(key)
            if disk is None:
                return
            # The file goes before the row: a crash in between leaves a row that the start drops.
            if disk.state is DiskState.READY:
                await self._store.remove_disk(key, disk.format)
            else:
                # What has its name was not made by us.
                await self._store.abandon_disk(key)
            await self._drop(disk, "request")

    async def notice(self, key: DiskKey, *, seen: bool = False) -> bool:
        """Drop a disk whose file somebody took away, and tell whether that was so.

        One that is being made is waited for. ``seen`` says that the file was watched going.
        Without that an empty folder of the instances is a doubt, as is whatever cannot be looked
        at, and a doubt keeps the disk.
        """
        async with self._locks.hold(key):
            disk = await self._catalog.disk(key)
            if disk is None or disk.state is not DiskState.READY:
                return False
            if not await self._instances.has_lost(disk, seen=seen):
                return False
            await uninterrupted(self._drop(disk, DELETED_OUTSIDE))
            return True

    async def stop(self, patience: float) -> None:
        """Begin no other disk; give those that are being made so many seconds, and then up."""
        await self._runs.shutdown(ShuttingDownError("the agent is stopping"), patience=patience)
        await self._at_once.close()

    async def _finish(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> None:
        """Create a disk of which somebody was told that it is on its way."""
        try:
            if self._wanted.is_promised(key):
                await self.create(key, spec, caller)
        except Exception as error:
            if self._wanted.is_promised(key):
                await uninterrupted(self._leave_word(key, spec, error))
            raise
        finally:
            self._wanted.end_promise(key)

    async def _leave_word(self, key: DiskKey, spec: DiskSpec, error: Exception) -> None:
        """Write the failure down where what was joined had failed before anybody was to be told."""
        async with self._locks.hold(key):
            if await self._catalog.disk(key) is None:
                await self._write_failure(key, spec, _words(error))

    async def _write_failure(self, key: DiskKey, spec: DiskSpec, why: str) -> None:
        wanted = pending(key, spec, self._now())
        await despite_full(self._store, lambda: self._catalog.begin_disk(wanted))
        await despite_full(self._store, lambda: self._catalog.fail_disk(key, why))

    async def _run(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> Created:
        """Run once for all who ask for this disk; its row tells how that ends."""
        with self._wanted.asked(key, spec):
            return await self._run_alone(key, spec, caller)

    async def _run_alone(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> Created:
        async with self._locks.hold(key):
            try:
                found = await self._claim(key, spec, caller)
                if isinstance(found, Created):
                    return found
                return await self._create(key, spec, caller, found)
            except BaseException as error:
                await uninterrupted(self._give_up(key, spec, error))
                if isinstance(error, PERSONAL):
                    raise PersonalError(error, caller.token) from error
                raise

    async def _give_up(self, key: DiskKey, spec: DiskSpec, error: BaseException) -> None:
        """Leave no row, or one that tells why to those who were told that the disk would come."""
        disk = await self._catalog.disk(key)
        if disk is not None and disk.state is DiskState.READY:
            return
        why = _words(error)
        if not self._wanted.is_promised(key):
            await self._forget(key)
        elif isinstance(error, Exception):
            await self._write_failure(key, spec, why)
            self._wanted.end_promise(key)
        if isinstance(error, Exception):
            self._tell(EventKind.DISK_FAILED, key, image_id=spec.image_id, error=why)

    async def _claim(
        self, key: DiskKey, spec: DiskSpec, caller: Caller
    ) -> Created | Claimed | None:
        """Give the disk if it is there, or can be made at once; else write the intent if it can be.

        Raises:
            DiskConflictError: as ``_existing``.
            DiskTooSmallError: the size asked for breaks the size rules.

        """
        wanted = pending(key, spec, self._now())

        def fit(cached: CachedImage, base: Base) -> Disk | None:
            if cached.standing is not Standing.ACTIVE:
                return None
            if not self._bases.trust.is_proved(base, cached.image):
                return None
            return intended(wanted, spec, Ensured(base, cached.image, CacheResult.HIT))

        began, made = self._clock(), None
        if self._at_once.suits(spec) and self._instances.remembered:
            claim, made = await self._room.retrying(partial(self._at_once.make, wanted, fit))
        else:
            claim = await self._room.retrying(partial(self._catalog.claim_disk, wanted, fit))
        if claim.intent is None or claim.found is None:
            return await self._there(await self._judge(claim.there, spec), spec, caller)
        cached, base = claim.found
        if made is None:
            return Ensured(base, cached.image, CacheResult.HIT), claim.intent
        self._seconds.labels(mode=spec.mode).observe(self._clock() - began)
        self._saved.inc(base.size)
        return Created(disk=made, base=base, anew=True, alone=True)

    async def _there(self, disk: Disk | None, spec: DiskSpec, caller: Caller) -> Created | None:
        if disk is None or disk.state is not DiskState.READY:
            return None
        await self._boot.bring_again(disk.key, spec, caller)
        return Created(disk=disk, base=None, anew=False, alone=False)

    async def _existing(self, key: DiskKey, spec: DiskSpec) -> Disk | None:
        """Give what has the name, if that is what ``spec`` asks for; the lock of the key is held.

        A file that was lost counts as no disk; a failed disk may become any other.

        Raises:
            DiskConflictError: it is something else, or nobody can tell whether it is lost.

        """
        return await self._judge(await self._catalog.disk(key), spec)

    async def _judge(self, disk: Disk | None, spec: DiskSpec) -> Disk | None:
        if disk is None:
            return None
        if disk.state is DiskState.READY and not await self._instances.has(disk):
            await self._drop(disk, DELETED_OUTSIDE)
            return None
        if disk.state is DiskState.READY and not await is_meant(disk, spec, self._catalog):
            raise conflict(disk)
        return disk

    async def _drop(self, disk: Disk, reason: str) -> None:
        """Drop the row; a base that the disk needed was in use until now."""
        await self._forget(disk.key)
        path = str(self._path(disk))
        self._tell(EventKind.DISK_GONE, disk.key, image_id=disk.image_id, path=path, reason=reason)

    async def _forget(self, key: DiskKey) -> None:
        await despite_full(self._store, lambda: self._catalog.remove_disk(key, self._now()))

    def _path(self, disk: Disk) -> Path:
        return self._store.layout.disk(disk.key, disk.format)

    def _tell(self, kind: EventKind, key: DiskKey, **facts: str | None) -> None:
        known = {name: fact for name, fact in facts.items() if fact is not None}
        self._events.emit(kind, instance_id=key.instance_id, name=key.name, **known)

    async def _create(
        self, key: DiskKey, spec: DiskSpec, caller: Caller, claimed: Claimed | None = None
    ) -> Created:
        """Take the base, write the intent, make the file, write the result."""
        ensured, disk = claimed or await self._intend(key, spec, caller)
        await self._boot.bring(key, None if ensured is None else ensured.image, caller)
        base = None if ensured is None else ensured.base
        try:
            with self._seconds.labels(mode=spec.mode).time():
                made = await self._disk_room.retrying(lambda: self._make(disk, spec, base))
        except BaseGoneError:
            # It was not what it was, or somebody took it away. It comes anew.
            return await self._create(key, spec, caller)
        if ensured is not None and ensured.result is not CacheResult.MISS:
            self._saved.inc(ensured.base.size)
        alone = ensured is None or not is_ami(ensured.image)
        return Created(disk=made, base=base, anew=True, alone=alone)

    async def _make(self, disk: Disk, spec: DiskSpec, base: Base | None) -> Disk:
        template = await self._making.prepare(disk.key, spec, disk.virtual_size, base)
        # From here on it takes milliseconds: who goes away now finds the disk made.
        return await uninterrupted(self._complete(disk, template, base))

    async def _intend(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> Claimed:
        """Take the base and write the intent, which then holds it in place of the lease."""
        while True:
            ensured = await self._ensure(spec, caller)
            lease_id = None if ensured is None else ensured.lease_id
            try:
                disk = intended(pending(key, spec, self._now()), spec, ensured)
                intent = await self._room.retrying(
                    partial(self._catalog.begin_disk, disk, lease_id)
                )
            except BaseException:
                if ensured is not None:
                    await uninterrupted(self._bases.release(ensured))
                raise
            if intent is not DiskIntent.BASE_GONE:
                return ensured, disk
            # Somebody found it damaged meanwhile: leases keep from eviction, not from that.

    async def _complete(self, disk: Disk, template: Template | None, base: Base | None) -> Disk:
        """Give a disk whose intent stands its file, and write down that it is there."""
        key = disk.key
        try:
            await self._making.finish(disk, template, base)
        except FileExistsError as error:
            raise not_ours(self._path(disk)) from error
        now = self._now()
        try:
            await self._instances.remember()
            finish = partial(
                self._catalog.finish_disk, key, virtual_size=disk.virtual_size, now=now
            )
            made = await self._room.retrying(finish)
        except BaseException:
            await self._store.remove_disk(key, disk.format)
            raise
        self._tell_of(made)
        return made

    def _tell_of(self, made: Disk) -> None:
        found = {"base_id": made.base_id, "path": str(self._path(made))}
        self._tell(EventKind.DISK_CREATED, made.key, image_id=made.image_id, **found)

    async def _ensure(self, spec: DiskSpec, caller: Caller) -> Ensured | None:
        if spec.image_id is None:
            return None
        return await self._bases.leased(spec.image_id, caller, "a disk that is about to be made")

    async def _expected(self, key: DiskKey, spec: DiskSpec) -> Disk:
        """Give the disk as it is while it is pending, with what its request will have found."""
        disk = pending(key, spec, self._now())
        if spec.image_id is None:
            return disk
        return replace(disk, cache=await self._bases.outlook(spec.image_id))


def _words(error: BaseException) -> str:
    known = isinstance(error, CacheAgentError)
    return str(error) if known else "internal error; see the agent's log"
