"""The whole: all steps, with stops, kills and starts between and in them, and a clean end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import rule

from cacheagent.errors import ProblemError
from cacheagent.model import DiskSpec, DiskState
from tests.stateful.agent import Killed
from tests.stateful.care import Care
from tests.stateful.outside import Outside
from tests.stateful.requests import Requests, answer, crowd_of
from tests.stateful.steps import ALL, NOBODY, Wish, keys, numbers, wishes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cacheagent.model import BaseId, DiskKey, ImageId
    from tests.service.rig import Rig

YEARS = 10**9
"""Seconds after which nothing is young and no lease counts."""

deeds = st.integers(0, 60)
"""Calls of store and catalog that an agent is left to make before it dies."""

KILLS = st.sampled_from(["creation", "pull", "crowd", "pass", "eviction", "deletion"])


class Whole(Requests, Care, Outside):
    """A run of the model with everything in it."""

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:  # noqa: FBT001 -- Hypothesis names it
        """Stop the agent in order, or kill it while it does nothing, and start it again."""
        evicts = bool(self.world.model.unfinished)
        with self.step("restart" if orderly else "kill", evicts=evicts):
            if orderly:
                self.world.restart()
            else:
                self.world.kill()

    @rule(what=KILLS, number=numbers, key=keys, wish=wishes, after=deeds)
    def kill_within(self, what: str, number: int, key: DiskKey, wish: Wish, after: int) -> None:
        """Kill the agent in the middle of something, and start it again."""
        image = self.image(number)
        match what:
            case "pull":
                self._kill_in(what, lambda rig: rig.bases.ensure(image.image_id, NOBODY), after)
            case "eviction":
                evict = partial(_evict, image_id=image.image_id)
                self._kill_in(what, evict, after, may_go=[image.base_id])
            case "pass":
                self._kill_in(what, _evict_all, after)
            case "creation":
                spec = wish.spec(self.world.images)
                self._kill_in(what, lambda rig: answer(rig, key, spec), after, {key: spec})
            case "crowd":
                spec, wanted = self.overlay_of(image), self.crowd_keys()
                crowd = partial(crowd_of, wanted=wanted, spec=spec, prunes=True)
                self._kill_in(what, crowd, after, dict.fromkeys(wanted, spec))
            case _:
                self._kill_in_a_deletion(number, after)

    def _kill_in(
        self,
        what: str,
        work: Callable[[Rig], Awaitable[object]],
        after: int,
        wanted: Mapping[DiskKey, DiskSpec] | None = None,
        may_go: Iterable[BaseId] = (),
    ) -> None:
        with self.step(f"kill in a {what}", evicts=True, may_go=may_go):
            self.killed(work, after)
            self.see_disks(wanted or {})

    def _kill_in_a_deletion(self, number: int, after: int) -> None:
        model = self.world.model
        if not model.disks:
            return
        key = self.chosen(model.disks, number)
        disk = model.disks[key]
        with self.step("kill in a deletion", evicts=bool(model.unfinished)):
            model.forget_disk(key, None)
            model.lost.add(key)
            self.killed(lambda rig: rig.disks.delete(key), after)
            if disk.path.exists():
                model.lost.discard(key)
                model.disks[key] = disk

    def killed(self, work: Callable[[Rig], Awaitable[object]], after: int) -> None:
        """Kill the agent after so many deeds, or when ``work`` has ended; start it again."""
        try:
            self.world.do(work, after)
        except Killed:
            self.world.start()
            return
        except ProblemError:
            pass
        self.world.kill()

    def see_disks(self, wanted: Mapping[DiskKey, DiskSpec]) -> None:
        """Believe the agent about disks whose maker never heard how it ended."""
        model, seen = self.world.model, self.world.look()
        for key, spec in wanted.items():
            disk = seen.disks.get(key)
            if disk is None or disk.state is not DiskState.READY or key in model.disks:
                continue
            # The row of a disk whose file was lost may still be there.
            if model.layout.disk(key, disk.format).exists():
                model.made(key, spec, disk, self.world.agent.now)

    # --- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Take everything back: then nothing is left, and there is room again."""
        if not hasattr(self, "world"):
            return
        try:
            if not self.failed:
                self._end()
        finally:
            self.world.close()

    def _end(self) -> None:
        model = self.world.model
        self.world.system.clear()
        with self.step("the end", evicts=True, may_go=self.world.seen.ready):
            for path in tuple(model.by_hand):
                path.unlink()
            model.by_hand.clear()
            model.leases.clear()
            self.world.do(self._take_back)
            self.world.agent.pass_time(YEARS)
            self.world.do(_empty)
            model.disks.clear()
            model.lost.clear()
            model.failed.clear()
            model.pins.clear()
        assert not self.world.seen.bases
        assert not self.world.seen.images
        assert not self.world.seen.disks
        assert not self.world.seen.cache_bytes

    async def _take_back(self, rig: Rig) -> None:
        for key in self.world.seen.disks:
            await rig.disks.delete(key)
        for image_id in self.world.model.pins:
            await rig.parts.catalog.unpin(image_id)
        self.world.model.unfinished.clear()


async def _empty(rig: Rig) -> None:
    """Evict everything by one pass, and forget what never came."""
    done = await rig.evictions.run("operator", ALL)
    assert not done.plan.stay
    assert not done.skipped
    for cached in await rig.parts.catalog.images():
        await rig.images.evict(cached.image.image_id, NOBODY)


async def _evict(rig: Rig, image_id: ImageId) -> None:
    await rig.images.evict(image_id, NOBODY)


async def _evict_all(rig: Rig) -> None:
    await rig.evictions.run("operator", ALL)
