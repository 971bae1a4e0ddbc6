"""Steps that nobody asks the agent about: done by hand, by Glance, by the clock, by the disk."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import rule

from cacheagent.errors import InsufficientSpaceError
from cacheagent.model import DiskFormat
from tests.fakes.values import disk_key
from tests.stateful.model import ByHand
from tests.stateful.steps import ALL, KIB, MIB, Steps, numbers, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import BaseId, DiskKey

naming = st.sampled_from(["absolute", "relative", "json"])


class Outside(Steps):
    """Overlays come and go, images lose their standing, time passes, the disk fills up."""

    # --- by hand -------------------------------------------------------------------------------

    @rule(number=numbers, name=naming)
    def make_overlay_by_hand(self, number: int, name: str) -> None:
        """Make an overlay in a folder that is scanned."""
        if not self.world.seen.ready:
            return
        base_id = self.chosen(self.world.seen.ready, number)
        with self.step("overlay by hand"):
            path = self.world.name_for(self.world.scan_dir)
            self.world.overlay_by_hand(base_id, path, name)

    @rule(number=numbers, name=naming)
    def make_overlay_for_an_instance(self, number: int, name: str) -> None:
        """Make an overlay where disks are, under the name of one: a start takes it in."""
        if not self.world.seen.ready:
            return
        base_id = self.chosen(self.world.seen.ready, number)
        key = disk_key(number % 5, "byhand")
        path = self.world.rig.layout.disk(key, DiskFormat.QCOW2)
        # A row that the agent still has would be taken for that of the new file.
        if path.exists() or key in self.world.model.lost:
            return
        with self.step("overlay of an instance by hand"):
            self.world.overlay_by_hand(base_id, path, name)

    @rule(number=numbers, copies=st.booleans())
    def make_more_by_hand(self, number: int, copies: bool) -> None:  # noqa: FBT001 -- as below
        """Make an overlay of an overlay, or copy a disk as somebody would who clones a guest."""
        found, disks = self.overlays(), self.world.model.disks.values()
        if not found:
            return
        ours = [disk.path for disk in disks if disk.overlay_of and disk.spec]
        if copies and ours:
            source = self.chosen(ours, number)
            with self.step("copy by hand"):
                self.world.copy_by_hand(found[source], source)
            return
        middle = self.chosen(found, number)
        with self.step("chain by hand"):
            self.world.chain_by_hand(found[middle], middle)

    def overlays(self) -> dict[Path, BaseId]:
        """Give the overlays that lead to a base, whoever made them."""
        model = self.world.model
        found = {path: each.base_id for path, each in model.by_hand.items() if model.leads_on(path)}
        ours = {disk.path: disk.overlay_of for disk in model.disks.values()}
        return found | {path: base_id for path, base_id in ours.items() if base_id is not None}

    @rule(number=numbers)
    def remove_what_was_made_by_hand(self, number: int) -> None:
        """Remove an overlay that somebody else has made."""
        if not self.world.model.by_hand:
            return
        path = self.chosen(self.world.model.by_hand, number)
        with self.step("remove by hand"):
            path.unlink()
            del self.world.model.by_hand[path]

    @rule(number=numbers, moves=st.booleans())
    def take_disk_by_hand(self, number: int, moves: bool) -> None:  # noqa: FBT001 -- Hypothesis names it
        """Remove the file of a disk behind the agent's back, or move it: an overlay stays one."""
        model = self.world.model
        if not model.disks:
            return
        key = self.chosen(model.disks, number)
        disk = model.disks[key]
        # One that somebody else has made may have a name that means nothing elsewhere.
        if disk.overlay_of is None or disk.spec is None or not moves:
            with self.step("remove a disk by hand"):
                disk.path.unlink()
                self._taken(key)
            return
        with self.step("move a disk by hand"):
            path = disk.path.rename(self.world.name_for(self.world.scan_dir))
            model.by_hand[path] = ByHand(base_id=disk.overlay_of, inode=path.stat().st_ino)
            self._taken(key)

    def _taken(self, key: DiskKey) -> None:
        self.world.model.forget_disk(key, None)
        self.world.model.lost.add(key)

    @rule(restarts=st.booleans())
    def unmount_for_a_while(self, restarts: bool) -> None:  # noqa: FBT001 -- Hypothesis names it
        """Unmount the file system that the guests of others lie on: no pass may take a base."""
        evicts = restarts and bool(self.world.model.unfinished)
        with self.step("unmount", evicts=evicts):
            self.world.unmount()
            if restarts:
                self.world.restart()
            with contextlib.suppress(InsufficientSpaceError):
                self.world.do(lambda rig: rig.evictions.run("operator", ALL))
        with self.step("mount"):
            self.world.mount()

    # --- Glance --------------------------------------------------------------------------------

    @rule(number=numbers, status=st.sampled_from(["active", "deactivated", "gone"]))
    def change_standing(self, number: int, status: str) -> None:
        """Have Glance deactivate or delete an image, or have it again."""
        with self.step(f"image {status}"):
            self.world.service.tell(self.image(number), status)

    # --- time and room -------------------------------------------------------------------------

    @rule(passes=seconds, back=st.integers(0, 3))
    def pass_time(self, passes: int, back: int) -> None:
        """Let time go by, or set the clock of the host back, which is rare."""
        with self.step("time passes" if back else "clock set back"):
            if back:
                self.world.agent.pass_time(passes)
            else:
                self.world.agent.set_back(passes)
                self.world.model.set_back(self.world.agent.now)

    @rule(left=st.none() | st.sampled_from([0, 64 * KIB, 512 * KIB, 2 * MIB, 6 * MIB]))
    def fill_the_disk(self, left: int | None) -> None:
        """Let somebody else take all but so many bytes, or give them back."""
        with self.step("disk is freed" if left is None else "disk fills up"):
            if left is None:
                self.world.system.clear()
            else:
                self.world.system.fill(left)
