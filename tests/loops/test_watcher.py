"""What is noticed for as long as the watcher runs, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends import inotify
from cacheagent.errors import CatalogError
from cacheagent.loops import watcher as loop
from cacheagent.loops.watcher import Watcher
from cacheagent.service.watch import Hooks, Watch
from cacheagent.service.watched import Watched
from tests.fakes.lying_glance import LyingGlance
from tests.fakes.values import base, disk, disk_key, glance_image
from tests.service.rig import in_a_task, rig_on, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

    from cacheagent.model import Base
    from tests.service.rig import Rig

INTERVAL = 0.01


class World:
    """An agent, its watcher, and how often a full pass was asked for."""

    def __init__(self, rig: Rig, shelf: Path) -> None:
        self.rig = rig
        self.shelf = shelf
        self.reconciled = 0
        self.pruned = 0
        self.last_runs: dict[str, datetime | None] = {}
        hooks = Hooks(
            reconcile=self._reconcile,
            prune=self._prune,
            lost=self._look,
            verify=self._look,
            damaged=self._look,
        )
        parts = rig.parts
        watch = Watch(parts, creation=rig.creation, watched=Watched(parts), hooks=hooks)
        self.watcher = Watcher(watch, parts.config, parts.now, self.last_runs)

    def _reconcile(self) -> None:
        self.reconciled += 1

    def _prune(self, trigger: str) -> None:
        assert trigger == "deletion"
        self.pruned += 1

    async def _look(self, base: Base, why: str = "") -> None:
        raise AssertionError(base, why)

    async def pruned_by(self, path: Path) -> None:
        """Make a file and remove it until somebody notices."""
        before = self.pruned
        async with asyncio.timeout(30):
            while self.pruned == before:
                path.touch()
                path.unlink()
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    """Let the watcher run, from when it watches on."""
    task = asyncio.create_task(world.watcher.run())
    try:
        await until(lambda: task.done() or world.last_runs["watcher"])
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Give an agent with a scan folder, whose watcher does not run yet."""
    monkeypatch.setattr(loop, "REST", 0)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    storage = {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(shelf)]}
    eviction = {"min_free": 0, "interval": INTERVAL}
    async with (
        LyingGlance() as glance,
        in_a_task(rig_on(tmp_path, glance.url, storage=storage, eviction=eviction)) as rig,
    ):
        yield World(rig, shelf)


async def test_what_happens_is_noticed_at_once(world: World) -> None:
    """From the first round on, and it is told when that was."""
    async with running(world):
        assert world.last_runs["watcher"] == world.rig.clock.time()
        await world.pruned_by(world.shelf / "vm.img")
    assert world.reconciled == 0


async def test_overflow_makes_all_watches_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is believed after it: what was missed is found by looking, what comes is watched."""
    catalog, layout = world.rig.parts.catalog, world.rig.layout
    await catalog.publish(base(1), [glance_image(1)], world.rig.clock.time())
    for number in (1, 2):
        one = disk(disk_key(number), 1)
        await catalog.begin_disk(one)
        layout.disk(one.key, one.format).parent.mkdir()
        layout.disk(one.key, one.format).touch()
        await catalog.finish_disk(one.key, virtual_size=512, now=world.rig.clock.time())
    path = layout.base(base(1).base_id, base(1).format)
    path.touch()
    os.truncate(path, base(1).virtual_size)
    async with running(world):
        monkeypatch.setattr(inotify, "_MOST_WAITING", 1)
        for path in sorted(layout.instance(disk_key(1).instance_id).iterdir()):
            path.unlink()
            path.parent.rmdir()
        await until(lambda: world.rig.metric("inotify_overflows_total"))
        monkeypatch.setattr(inotify, "_MOST_WAITING", 1000)
        async with asyncio.timeout(30):
            while await catalog.disk(disk_key(1)) is not None:
                assert world.reconciled
        assert await catalog.disk(disk_key(2)) is not None
        await world.pruned_by(world.shelf / "vm.img")


async def test_folder_that_comes_back_is_watched_again(world: World, tmp_path: Path) -> None:
    """Nothing tells of a mount, so it is looked for; the same where it was not there at first."""
    world.shelf.rmdir()
    async with running(world):
        for _ in range(2):
            before = world.reconciled
            world.shelf.mkdir()
            await until(lambda: world.reconciled > before)  # noqa: B023 -- it ends with its turn
            await world.pruned_by(world.shelf / "vm.img")
            before = world.reconciled
            world.shelf.rename(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").rmdir()
            await until(lambda: world.rig.metric("unwatched_folders"))
            assert world.reconciled > before


@pytest.mark.parametrize("where", ["open", "begin"])
async def test_failure_does_not_end_it(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """With too many inotify instances, or a catalog that fails, it tries again."""
    broken = inotify.Watcher if where == "open" else world.rig.parts.catalog
    name = "open" if where == "open" else "next_disks"
    right = getattr(broken, name)
    failures = iter([OSError(errno.EMFILE, "too many"), CatalogError("it cannot be read")])

    async def fail(*arguments: object) -> object:
        for failure in failures:
            raise failure
        return await right(*arguments)

    monkeypatch.setattr(broken, name, fail)
    async with running(world):
        await world.pruned_by(world.shelf / "vm.img")
    assert next(failures, None) is None
