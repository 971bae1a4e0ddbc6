"""Steps of schedulers and operators: what the API is asked for."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import rule

from cacheagent.errors import (
    BaseInUseError,
    DiskConflictError,
    GlanceUnavailableError,
    ImageNotFoundError,
    InsufficientSpaceError,
    ProblemError,
)
from cacheagent.model import CacheResult, Disk, DiskFormat, DiskMode, DiskSpec, Lease
from cacheagent.policy.eviction import Demand, DemandKind
from tests.fakes.values import disk_key
from tests.stateful.steps import ALL, KIB, MIB, NOBODY, Steps, Wish, keys, numbers, seconds, wishes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.model import DiskKey
    from tests.service.rig import Rig
    from tests.stateful.images import Image

CROWD = 4


class Requests(Steps):
    """Images and disks, pins and leases, passes and evictions."""

    # --- images --------------------------------------------------------------------------------

    @rule(number=numbers)
    def pull(self, number: int) -> None:
        """Bring an image in."""
        image = self.image(number)
        with self.step("pull", evicts=True):
            asked, sent = self._asked(image)
            try:
                ensured = self.world.do(lambda rig: rig.bases.ensure(image.image_id, NOBODY))
            except ProblemError as error:
                self.not_to_be_had(image, error)
            else:
                assert ensured.base.base_id == image.base_id
                self.brought(image, asked, sent)

    @rule(number=numbers, after=st.integers(0, 63 * KIB))
    def pull_cut_off(self, number: int, after: int) -> None:
        """Ask for an image whose download is cut off."""
        image = self.image(number)
        with self.step("pull, cut off", evicts=True):
            was_there = image.base_id in self.world.seen.ready
            with self.world.service.cutting(after):
                try:
                    self.world.do(lambda rig: rig.bases.ensure(image.image_id, NOBODY))
                except GlanceUnavailableError:
                    assert not was_there
                    self.world.model.unfinished.add(image.image_id)
                except ProblemError as error:
                    self.not_to_be_had(image, error)
                else:
                    assert was_there

    def _asked(self, image: Image) -> tuple[int, int]:
        service = self.world.service
        return service.requests(), service.downloads(image.base_id)

    def brought(self, image: Image, asked: int, sent: int) -> None:
        """Check that an image that came was downloaded once, and only where it was not there."""
        now_asked, now_sent = self._asked(image)
        if self.world.seen.hits(image.image_id):
            assert now_asked == asked
        elif image.base_id in self.world.seen.ready:
            assert now_sent == sent
        elif not self.world.system.filled:
            # Else the file system may be found full, and the download repeated.
            assert now_sent == sent + 1
        self.world.model.unfinished.discard(image.image_id)

    @rule(number=numbers)
    def evict(self, number: int) -> None:
        """Have an operator evict an image."""
        image = self.image(number)
        held = {hold[2] for hold in self.world.model.holds(self.world.seen)}
        known = image.image_id in self.world.seen.images
        with self.step("evict", may_go=[image.base_id]):
            try:
                self.world.do(lambda rig: rig.images.evict(image.image_id, NOBODY))
            except BaseInUseError:
                assert image.base_id in held or self.world.in_doubt(image.base_id)
            except ImageNotFoundError:
                assert not known
            else:
                self.world.model.unfinished.discard(image.image_id)
        linked = self.world.seen.images.get(image.image_id)
        assert linked is None or image.base_id in held or self.world.in_doubt(image.base_id)

    @rule(number=numbers, pins=st.booleans())
    def pin(self, number: int, pins: bool) -> None:  # noqa: FBT001 -- Hypothesis names it
        """Pin an image, or take its pin away."""
        image_id, model = self.image(number).image_id, self.world.model
        with self.step("pin" if pins else "unpin"):
            try:
                self.world.do(
                    lambda rig: (rig.images.pin if pins else rig.images.unpin)(image_id, NOBODY)
                )
            except ImageNotFoundError:
                assert image_id not in self.world.seen.images
            except InsufficientSpaceError:
                assert self.world.system.filled
            else:
                (model.pins.add if pins else model.pins.discard)(image_id)

    @rule(number=numbers, lasts=st.none() | seconds)
    def lease(self, number: int, lasts: int | None) -> None:
        """Lease a base, or let a lease go."""
        if lasts is None:
            self._release(number)
            return
        if not self.world.seen.ready:
            return
        base_id = self.chosen(self.world.seen.ready, number)
        end = self.world.seen.now + timedelta(seconds=lasts)
        lease_id = f"lease {self.world.number()}"
        lease = Lease(lease_id=lease_id, base_id=base_id, holder="somebody", expires_at=end)
        with self.step("lease"):
            try:
                assert self.world.do(lambda rig: rig.parts.catalog.lease(lease))
            except InsufficientSpaceError:
                assert self.world.system.filled
            else:
                self.world.model.leases[lease_id] = (base_id, end)

    def _release(self, number: int) -> None:
        if not self.world.model.leases:
            return
        lease_id = self.chosen(self.world.model.leases, number)
        with self.step("release"):
            try:
                self.world.do(lambda rig: rig.parts.catalog.release(lease_id))
            except InsufficientSpaceError:
                assert self.world.system.filled
            else:
                del self.world.model.leases[lease_id]

    # --- passes --------------------------------------------------------------------------------

    @rule(free=st.none() | st.integers(0, 4 * MIB))
    def prune(self, free: int | None) -> None:
        """Make a pass: it does what a dry run said, which changed nothing, and leaves no rest."""
        demand = None if free is None else Demand(DemandKind.OPERATOR, free)
        before = self.world.seen
        with self.step("dry run"):
            plan = self.world.do(lambda rig: rig.evictions.plan(demand))
        assert self.world.seen == before
        with self.step("prune", evicts=True):
            try:
                done = self.world.do(lambda rig: rig.evictions.run("operator", demand))
            except InsufficientSpaceError:
                assert self.world.system.filled
                return
            assert [each.base.base_id for each in done.evicted] == [
                each.base.base_id for each in plan.evict
            ]
            assert not done.skipped
        self.world.checks.bounds(self.world.seen, self.world.system.free)

    # --- disks ---------------------------------------------------------------------------------

    @rule(key=keys, wish=wishes)
    def create(self, key: DiskKey, wish: Wish) -> None:
        """Ask for a disk."""
        spec = wish.spec(self.world.images)
        with self.step("create", evicts=True):
            self.created(key, spec, self.world.do(lambda rig: answer(rig, key, spec)), alone=True)

    def created(self, key: DiskKey, spec: DiskSpec, answer: object, *, alone: bool) -> None:
        """Check the answer to a request for a disk, and believe it.

        What was requested ``alone`` was not refused because of others.
        """
        model, known = self.world.model, self.world.model.disks.get(key)
        match answer:
            case DiskConflictError():
                path = self.world.rig.layout.disk(key, spec.format)
                assert known or key in model.lost or path in model.by_hand
            case ProblemError():
                assert known is None
                if self.world.system.filled:
                    # There may have been no room to take the intent back.
                    model.failed.add(key)
                if alone:
                    self._disk_refused(spec, answer)
            case Disk() as disk, bool(made):
                assert made == (known is None)
                model.made(key, spec, disk, self.world.agent.now)
                self._check_content(key, spec)
            case other:
                raise AssertionError(other)

    def _disk_refused(self, spec: DiskSpec, error: ProblemError) -> None:
        image = self.world.service.images.get(spec.image_id)  # type: ignore[arg-type]  # None is no key
        size = 4 * MIB
        if image is not None and not self.world.seen.hits(image.image_id):
            if not isinstance(error, InsufficientSpaceError):
                self.not_to_be_had(image, error)
                return
            size += 2 * (len(image.data) + len(image.content))
        assert isinstance(error, InsufficientSpaceError)
        assert not self.world.must_fit(size, cached=size)

    def _check_content(self, key: DiskKey, spec: DiskSpec) -> None:
        """Look at a copy, as long as nobody has written to it."""
        disk = self.world.model.disks[key]
        if spec.image_id is not None and disk.format is DiskFormat.RAW:
            content = self.world.service.images[spec.image_id].content
            assert disk.path.read_bytes()[: len(content)] == content

    @rule(number=numbers, prunes=st.booleans())
    def crowd(self, number: int, prunes: bool) -> None:  # noqa: FBT001 -- Hypothesis names it
        """Have many ask for the same at the same time, and maybe a pass in the middle of it."""
        image = self.image(number)
        spec = self.overlay_of(image)
        with self.step("crowd", evicts=True):
            asked, sent = self._asked(image)
            wanted = self.crowd_keys()
            answers = self.world.do(lambda rig: crowd_of(rig, wanted, spec, prunes=prunes))
            for key, answer in zip(wanted, answers, strict=True):
                self.created(key, spec, answer, alone=False)
            made = [answer for answer in answers if isinstance(answer, tuple)]
            if len(made) == len(wanted) and any(answer[1] for answer in made):
                assert made[0][0].cache in CacheResult
                self.brought(image, asked, sent)

    def overlay_of(self, image: Image) -> DiskSpec:
        """Give what a crowd asks for."""
        return DiskSpec(image_id=image.image_id, size=None, mode=DiskMode.OVERLAY)

    def crowd_keys(self) -> list[DiskKey]:
        """Give names of disks that do not stand for anything."""
        taken = {*self.world.model.disks, *self.world.model.lost}
        free = (disk_key(number, "crowd") for number in range(1, 64))
        return [key for key in free if key not in taken][:CROWD]

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        """Delete a disk."""
        model = self.world.model
        if not (known := {*model.disks, *model.lost}):
            return
        key = self.chosen(known, number)
        with self.step("delete"):
            try:
                self.world.do(lambda rig: rig.disks.delete(key))
            except InsufficientSpaceError:
                assert self.world.system.filled
                self._lose([key])
            else:
                model.forget_disk(key, self.world.agent.now)

    @rule(number=numbers)
    def delete_instance(self, number: int) -> None:
        """Delete an instance with all its disks."""
        model = self.world.model
        if not model.disks:
            return
        instance_id = self.chosen(model.disks, number).instance_id
        theirs = [key for key in model.disks if key.instance_id == instance_id]
        with self.step("delete an instance"):
            try:
                self.world.do(lambda rig: rig.disks.delete_instance(instance_id))
            except InsufficientSpaceError:
                assert self.world.system.filled
                self._lose(theirs)
            else:
                for key in theirs:
                    model.forget_disk(key, self.world.agent.now)

    def _lose(self, keys: Iterable[DiskKey]) -> None:
        """Note whose files have gone, while the rows could not go for want of room."""
        model = self.world.model
        for key in keys:
            if key in model.disks and not model.disks[key].path.exists():
                model.forget_disk(key, None)
                model.lost.add(key)


async def answer(rig: Rig, key: DiskKey, spec: DiskSpec) -> object:
    """Ask for a disk; give it, and whether it was made now, or why there is none."""
    try:
        view, made = await rig.disks.create(key, spec, NOBODY)
    except ProblemError as error:
        return error
    return view.disk, made


async def crowd_of(
    rig: Rig, wanted: list[DiskKey], spec: DiskSpec, *, prunes: bool
) -> list[object]:
    """Ask for many disks at once."""
    asking = [asyncio.create_task(answer(rig, key, spec)) for key in wanted]
    if prunes:
        await _pass(rig)
    return await asyncio.gather(*asking)


async def _pass(rig: Rig) -> None:
    """Free all that may go, if there is room to write that down."""
    try:
        await rig.evictions.run("operator", ALL)
    except InsufficientSpaceError:
        return
