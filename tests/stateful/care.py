"""Steps of the agent's own care: what changed behind its back is found, and put right."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import rule

from cacheagent.errors import InsufficientSpaceError
from cacheagent.model import Standing, VerificationOutcome
from cacheagent.service.revalidate import Revalidate
from cacheagent.service.verify import Verify
from cacheagent.sync.throttle import Throttle
from tests.stateful.steps import MIB, NOBODY, Steps, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheagent.model import BaseId, ImageId, Verification
    from tests.service.rig import Rig

STANDINGS = {"active": Standing.ACTIVE, "deactivated": Standing.DEACTIVATED, "gone": Standing.GONE}


class Care(Steps):
    """The reconciler's rounds, the scrubber, the revalidator, and what the watcher tells."""

    @rule()
    def reconcile(self) -> None:
        """Compare catalog and files while the agent runs."""
        with self.step("reconcile"):
            self.world.do(lambda rig: rig.reconcile.check(rig.parts.now()))
            self.world.model.restarted(self.world.look())

    @rule()
    def revalidate(self) -> None:
        """Ask Glance what became of the images: one that is not active is handed out no more."""
        full = self.world.system.filled
        with self.step("revalidate"), contextlib.ExitStack() as stack:
            if full:
                stack.enter_context(contextlib.suppress(ExceptionGroup, InsufficientSpaceError))
            self.world.do(_revalidated)
        for image_id, cached in self.world.seen.images.items():
            if cached.base_id is not None and not full:
                assert cached.standing is STANDINGS[self.world.service.standing[image_id]]

    @rule(number=numbers)
    def notice(self, number: int) -> None:
        """Tell the agent of a disk that was seen going."""
        if not self.world.model.lost:
            return
        key = self.chosen(self.world.model.lost, number)
        with self.step("notice"):
            try:
                self.world.do(lambda rig: rig.creation.notice(key, seen=True))
            except InsufficientSpaceError:
                assert self.world.system.filled
            else:
                self.world.model.lost.discard(key)

    @rule(number=numbers, how=st.sampled_from(["verify", "hit", "reconcile"]))
    def spoil_a_base(self, number: int, how: str) -> None:
        """Let a base rot, or go: that is found, and where somebody needs it, it is there again."""
        if not (intact := self.intact()):
            return
        base_id = self.chosen(intact, number)
        image_id = next(
            key for key, each in self.world.seen.images.items() if each.base_id == base_id
        )
        used = base_id in {hold[2] for hold in self.world.model.holds(self.world.seen)}
        path = self.world.base_path(base_id)
        with self.step(f"spoil a base, {how}", may_go=[base_id]):
            if how == "verify":
                # A base that was converted has no digest to be compared with before it was read.
                self.world.do(lambda rig: _verified(rig, image_id))
                _rot(path)
                done = self.world.do(lambda rig: _verified(rig, image_id))
                assert done.outcome is VerificationOutcome.DAMAGED
            else:
                path.unlink()
                self.world.do(lambda rig: _found(rig, image_id, how))
            if how == "reconcile":
                self.world.model.restarted(self.world.look())
        back = base_id in self.world.seen.ready
        assert back or not (used or how == "hit")

    def intact(self) -> frozenset[BaseId]:
        """Give the bases that can be had again beyond doubt."""
        world = self.world
        if not world.must_fit(4 * MIB, cached=4 * MIB if world.checks.policy.max_size else 0):
            return frozenset()
        lost = {
            cached.base_id
            for image_id, cached in world.seen.images.items()
            if world.service.standing[image_id] != "active" or not world.seen.hits(image_id)
        }
        # Who has leased a base has to ask for it anew by himself.
        return frozenset(world.seen.ready - lost - set(world.seen.leases.values()))


async def _revalidated(rig: Rig) -> Mapping[ImageId, Standing]:
    revalidate = Revalidate(rig.parts, lambda: None)
    revalidate._rate = Throttle(None)  # noqa: SLF001 -- nobody else has to be served
    return await revalidate.run()


async def _verified(rig: Rig, image_id: ImageId) -> Verification:
    verify = Verify(rig.parts, rig.bases, rig.repair, access=rig.access)
    return await verify.verify(image_id, NOBODY)


async def _found(rig: Rig, image_id: ImageId, how: str) -> None:
    if how == "hit":
        await rig.bases.ensure(image_id, NOBODY)
    else:
        await rig.reconcile.check(rig.parts.now())


def _rot(path: Path) -> None:
    """Change one byte in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
