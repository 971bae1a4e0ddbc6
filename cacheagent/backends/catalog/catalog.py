"""The catalog: which images, bases, disks and pins exist, and in which state.

Each coroutine is one hop to the catalog's thread, and those that write are one transaction there.
All raise ``CatalogError`` where the database fails; those that write also raise
``InsufficientSpaceError``. A method whose caller is cancelled has ended when the cancellation
comes out of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.backends.catalog import around, claims, counts, holds, mending, queries
from cacheagent.backends.catalog.database import Database
from cacheagent.backends.catalog.schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from cacheagent.backends.catalog.around import Around
    from cacheagent.backends.catalog.claims import Claim, Fit
    from cacheagent.backends.catalog.holds import Held
    from cacheagent.backends.catalog.queries import DiskIntent
    from cacheagent.model import (
        Base,
        BaseId,
        BaseState,
        CachedImage,
        Counts,
        Digest,
        Disk,
        DiskKey,
        DiskName,
        DiskState,
        GlanceImage,
        ImageId,
        InstanceId,
        Lease,
        Standing,
        User,
    )
    from cacheagent.policy.drift import DriftPlan
    from cacheagent.sync.lane import Ended


class Catalog:
    """An index of the files: whoever writes to it records the intent first, then does the deed."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    async def open(cls, path: Path) -> Catalog:
        """Open the catalog at ``path``, or begin one; a broken file is set aside, never removed.

        Raises: ``CatalogError`` where a newer version has written it, or it cannot be opened.
        """
        return cls(await Database.open(path, MIGRATIONS))

    async def close(self) -> None:
        """Close the database. Nothing else may be called after that."""
        await self._db.close()

    @property
    def rebuilt(self) -> bool:
        """Whether the catalog was begun anew, because none was there or it was broken."""
        return self._db.begun_anew

    @property
    def set_aside(self) -> Path | None:
        """Where the broken file has gone, None if none was found."""
        return self._db.set_aside

    # --- images ---------------------------------------------------------------------------------

    async def intend_image(self, image: GlanceImage, now: datetime) -> None:
        """Record the intent to ingest; an image that is known gets the new description.

        It counts as active again. A base that is not what Glance's digest stands for is let go.
        """
        await self._db.write(queries.put_image, image, None, now)

    async def link_image(self, image: GlanceImage, base_id: BaseId, now: datetime) -> bool:
        """Let the image stand for a base that is here; False where that is not READY any more."""
        return await self._db.write(queries.link_image, image, base_id, now)

    async def forget_image(self, image_id: ImageId) -> None:
        """Drop the intent to ingest the image; one that has a base stays, and so does a pin."""
        await self._db.write(queries.forget_image, image_id)

    async def image(self, image_id: ImageId) -> CachedImage | None:
        """Give one image."""
        return await self._db.read(queries.image, image_id)

    async def images(self) -> list[CachedImage]:
        """Give all images, by id."""
        return await self._db.read(queries.images)

    async def images_named(self, image_ids: Collection[ImageId]) -> list[CachedImage]:
        """Give these images; one that is unknown is left out."""
        return await self._db.read(queries.images_named, image_ids)

    async def images_of(self, base_id: BaseId) -> list[CachedImage]:
        """Give the images that stand for the base, by id."""
        return await self._db.read(queries.images_of, base_id)

    async def set_standing(self, image_id: ImageId, standing: Standing) -> None:
        """Note what Glance says of the image now."""
        await self._db.write(queries.set_standing, image_id, standing)

    # --- bases ----------------------------------------------------------------------------------

    async def publish(self, base: Base, images: Sequence[GlanceImage], now: datetime) -> None:
        """Record the base, in place of an older row, and that the images stand for it."""
        await self._db.write(queries.publish, base, images, now)

    async def base(self, base_id: BaseId) -> Base | None:
        """Give one base."""
        return await self._db.read(queries.base, base_id)

    async def bases(self) -> list[Base]:
        """Give all bases, by id."""
        return await self._db.read(queries.bases)

    async def bases_named(self, base_ids: Collection[BaseId]) -> list[Base]:
        """Give these bases; one that is unknown is left out."""
        return await self._db.read(queries.bases_named, base_ids)

    async def set_base_state(self, base_id: BaseId, state: BaseState) -> None:
        """Set the state; INGESTING is none that a base can have and a ``CatalogError``."""
        await self._db.write(queries.set_base_state, base_id, state)

    async def set_verified(self, base_id: BaseId, digest: Digest, now: datetime) -> None:
        """Note that the file of the base was read at ``now``, and what its digest is."""
        await self._db.write(queries.set_verified, base_id, digest, now)

    async def set_proved(self, base: Base) -> None:
        """Note what was proved of the base: its rules' version, and its signatures."""
        await self._db.write(queries.set_proved, base)

    async def touch(self, base_ids: Sequence[BaseId], now: datetime) -> None:
        """Note that the bases are in use at ``now``.

        Times of any base that lie in the future become ``now``: the clock was set back, and a
        base would not grow old until it has caught up.
        """
        await self._db.write(queries.touch, base_ids, now)

    async def begin_eviction(self, base_id: BaseId, now: datetime) -> tuple[User, ...]:
        """Set the base to EVICTING, unless a disk, a pin or a lease holds it.

        Returns what holds it: empty means that it is EVICTING now, and no disk can be begun from
        it any more.
        """
        return await self._db.write(holds.begin_eviction, base_id, now)

    async def end_eviction(self, base_id: BaseId, now: datetime) -> tuple[User, ...]:
        """Drop the base and its images, unless somebody holds it since ``begin_eviction``.

        Returns what holds it: empty means that the row is gone.
        """
        return await self._db.write(holds.end_eviction, base_id, now)

    async def remove_base(self, base_id: BaseId) -> None:
        """Drop the base and its images. Disks keep its name."""
        await self._db.write(queries.remove_base, base_id)

    # --- disks ----------------------------------------------------------------------------------

    async def begin_disk(self, disk: Disk, lease_id: str | None = None) -> DiskIntent:
        """Record the intent to make a disk, as PENDING, whatever state ``disk`` says.

        From then on the row holds the base, and the lease is dropped in the same transaction.

        A row that is PENDING or FAILED is replaced: the caller holds the lock of the key, so
        nobody else works on it. Nothing is recorded where a READY row is there (``EXISTS``), or
        where the base is not READY any more (``BASE_GONE``).
        """
        return await self._db.write(queries.begin_disk, disk, lease_id)

    async def claim_disk(self, wanted: Disk, fit: Fit) -> Claim:
        """Look a request for a disk up, and record the intent where its base is here.

        ``fit`` gives the disk as it will be, None where the base will not do. It runs in the
        catalog's thread. What it raises leaves nothing written. From the intent on the row holds
        the base.
        """
        return await self._db.write(claims.claim_disk, wanted, fit)

    def claim_disks(self, wanted: Sequence[tuple[Disk, Fit]]) -> list[Ended]:
        """Do what ``claim_disk`` does for several disks at once; give what comes of each.

        For threads other than the event loop's: it blocks.
        """
        each = ({"wanted": disk, "fit": fit} for disk, fit in wanted)
        return self._db.write_each(claims.claim_disk, each)

    def finish_disks(self, made: Sequence[Disk], now: datetime) -> list[Ended]:
        """Do what ``finish_disk`` does for several disks; as ``claim_disks``."""
        each = ({"key": disk.key, "virtual_size": disk.virtual_size, "now": now} for disk in made)
        return self._db.write_each(queries.finish_disk, each)

    async def finish_disk(self, key: DiskKey, *, virtual_size: int, now: datetime) -> Disk:
        """Set the disk to READY, and its base's last use to ``now``; give the disk.

        Raises: ``DiskNotFoundError``.
        """
        return await self._db.write(queries.finish_disk, key, virtual_size=virtual_size, now=now)

    async def fail_disk(self, key: DiskKey, error: str) -> None:
        """Set the disk to FAILED; ``error`` says why."""
        await self._db.write(queries.fail_disk, key, error)

    async def remove_disk(self, key: DiskKey, now: datetime) -> None:
        """Drop the disk; a base that it needed was in use until ``now``."""
        await self._db.write(queries.remove_disk, key, now)

    async def disk(self, key: DiskKey) -> Disk | None:
        """Give one disk."""
        return await self._db.read(queries.disk, key)

    async def disk_around(
        self, key: DiskKey, names: Collection[DiskName]
    ) -> tuple[Disk, Around] | None:
        """Give one disk with what belongs to it, as ``around`` does."""
        return await self._db.read(around.with_around, key, names)

    async def around(self, disk: Disk, names: Collection[DiskName]) -> Around:
        """Give what belongs to the disk: its base, and those disks of its instance.

        Where there are any, its image too.
        """
        return await self._db.read(around.around, disk, names)

    async def disks(self) -> list[Disk]:
        """Give all disks, by instance and name."""
        return await self._db.read(queries.disks)

    async def next_disks(self, after: InstanceId | None, number: int) -> list[Disk]:
        """Give the disks of the next ``number`` instances behind ``after``, by instance and name.

        None stands before all. So all of them are read without all being there at once, and
        nothing else waits long.
        """
        return await self._db.read(queries.next_disks, after, number)

    async def images_of_disks(self) -> frozenset[ImageId]:
        """Give the images that disks are made of."""
        return await self._db.read(queries.images_of_disks)

    async def disks_of_instance(self, instance_id: InstanceId) -> list[Disk]:
        """Give the disks of one instance, by name."""
        return await self._db.read(queries.disks_of_instance, instance_id)

    async def disk_states(
        self, instance_ids: Collection[InstanceId]
    ) -> Mapping[DiskKey, DiskState]:
        """Give the disks of all these instances, and their states."""
        return await self._db.read(queries.disk_states, instance_ids)

    async def disks_of_base(self, base_id: BaseId) -> list[Disk]:
        """Give the disks that need the base: READY overlays, and every disk that is PENDING.

        A full copy that is READY does not need it, nor does a disk that FAILED.
        """
        return await self._db.read(queries.disks_of_base, base_id)

    # --- holds ----------------------------------------------------------------------------------

    async def held(self, image_ids: Sequence[ImageId], now: datetime) -> list[Held]:
        """Give these images with bases and who holds them; one that is unknown is left out."""
        return await self._db.read(holds.held, image_ids, now)

    async def users(self, now: datetime) -> Mapping[BaseId, tuple[User, ...]]:
        """Give who holds which base: disks, pins, leases; a base that nobody holds is left out."""
        return await self._db.read(holds.users, now)

    async def users_of(self, base_id: BaseId, now: datetime) -> tuple[User, ...]:
        """Give who holds the base: disks, pins, leases."""
        return await self._db.read(holds.users_of, base_id, now)

    async def lease_image(
        self, image_id: ImageId, lease_id: str, *, holder: str, expires_at: datetime
    ) -> tuple[CachedImage, Base] | None:
        """Find the base of the image and lease it, in one step: nothing can evict it in between.

        None where the image has no base that is READY; then nothing is leased.
        """
        return await self._db.write(holds.lease_image, image_id, lease_id, holder, expires_at)

    async def lease(self, lease: Lease) -> bool:
        """Record a lease, or its new expiry; False where its base is not READY."""
        return await self._db.write(holds.lease, lease)

    async def leases(self, now: datetime) -> list[Lease]:
        """Give the leases that have not expired, those that expire first first."""
        return await self._db.read(holds.leases, now)

    async def release(self, lease_id: str) -> None:
        """Drop the lease; one that is gone is a success too."""
        await self._db.write(holds.release, lease_id)

    async def drop_leases(self, expired_by: datetime | None = None) -> None:
        """Drop the leases that have expired; all of them, at a start, when nobody holds any."""
        await self._db.write(holds.drop_leases, expired_by)

    # --- pins, and all together -----------------------------------------------------------------

    async def pin(self, image_id: ImageId, now: datetime) -> None:
        """Pin the image, known or not."""
        await self._db.write(queries.pin, image_id, now)

    async def unpin(self, image_id: ImageId) -> None:
        """Take the pin of the image away, if it has one."""
        await self._db.write(queries.unpin, image_id)

    async def pins(self) -> frozenset[ImageId]:
        """Give the images that are pinned."""
        return await self._db.read(queries.pins)

    async def counts(self, now: datetime) -> Counts:
        """Count everything, without reading it all."""
        return await self._db.read(counts.counts, now)

    async def image_states(self) -> Mapping[ImageId, BaseState]:
        """Give each image with the state of its base; INGESTING for one that has none yet."""
        return await self._db.read(counts.image_states)

    async def note(self, name: str) -> str | None:
        """Give what was noted under the name."""
        return await self._db.read(queries.note, name)

    async def put_note(self, name: str, value: str) -> None:
        """Note something of the host that outlives the daemon."""
        await self._db.write(queries.put_note, name, value)

    async def adopt(
        self,
        *,
        bases: Sequence[Base] = (),
        images: Sequence[CachedImage] = (),
        disks: Sequence[Disk] = (),
    ) -> None:
        """Record in one transaction what was found among the files.

        A row that is there stays as it is, but for an image that has no base yet: it gets one.
        """
        await self._db.write(queries.adopt, bases=bases, images=images, disks=disks)

    async def mend(self, plan: DriftPlan, now: datetime, why: str) -> None:
        """Do in one transaction what the plan says of rows.

        ``why`` is told of the disks that were not made.

        Raises: ``DiskNotFoundError`` for a disk that the plan finishes and that has no row.
        """
        await self._db.write(mending.mend, plan, now, why)
