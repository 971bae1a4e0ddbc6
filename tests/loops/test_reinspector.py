"""The reinspector: when bases of older rules are inspected, and which are left alone."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.loops.reinspector import REST, Reinspector
from cacheagent.model import BaseState
from cacheagent.service.reinspect import Reinspect
from tests.fakes.lying_glance import LyingGlance, no_answer
from tests.service.rig import Rig, in_a_task, rig_on
from tests.service.trusting import bring, make_old, qcow2_of, row_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("qemu_img")

DATA = os.urandom(1 << 20)


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire the services of an agent on it."""
    async with in_a_task(rig_on(tmp_path, glance.url)) as wired:
        yield wired


class Watched:
    """A reinspector whose waits a test sees, on a clock that passes when it waits."""

    def __init__(self, rig: Rig) -> None:
        self.runs: dict[str, datetime | None] = {}
        self.waits: list[float] = []
        self.service = Reinspect(rig.parts, rig.bases, rig.repair)
        self._clock = rig.clock
        self.loop = Reinspector(
            self.service,
            rig.parts.config,
            rig.parts.now,
            rig.clock,
            self.runs,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._clock.now += seconds


async def test_all_are_inspected_one_after_the_other(rig: Rig, glance: LyingGlance) -> None:
    """A round is one base; when none is left, there is nothing to do."""
    watched = Watched(rig)
    assert watched.runs == {"reinspector": None}
    for number in range(2):
        await make_old(rig, await bring(rig, glance.add(DATA + bytes([number]))))
    assert [await watched.loop.run_once() for _ in range(3)] == [True, True, False]
    assert rig.metric("reinspections_total", result="passed") == 2
    assert watched.runs["reinspector"] == rig.parts.now()


async def test_reading_is_no_faster_than_the_scrubber_may(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """What guests do with the disks comes first."""
    data = os.urandom(9 << 20)
    slow = {"bytes_per_second": 1 << 20}
    async with rig_on(tmp_path, glance.url, scrub=slow) as rig:
        watched = Watched(rig)
        await make_old(rig, await bring(rig, glance.add(data)))
        before = rig.clock.now
        assert await watched.loop.run_once()
        # The last block is not waited for: nothing comes after it.
        assert rig.clock.now - before == pytest.approx(8, abs=1)


async def test_base_of_which_nothing_can_be_told_rests(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """While Glance is away a converted base is not asked for again and again."""
    watched = Watched(rig)
    image = await asyncio.to_thread(qcow2_of, DATA, tmp_path)
    base = await bring(rig, glance.add(image, disk_format="qcow2", virtual_size=len(DATA)))
    await make_old(rig, base)
    glance.always("show", no_answer())
    assert await watched.loop.run_once()
    assert not await watched.loop.run_once()
    glance.truth("show")
    rig.clock.now += REST
    assert await watched.loop.run_once()
    assert (await row_of(rig, base)).inspection_version == rig.parts.inspection_version


async def test_file_that_cannot_be_read_stops_nothing(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base whose file has gone is left to those who look after that; the loop goes on."""
    watched = Watched(rig)
    base = await bring(rig, glance.add(DATA))
    await make_old(rig, base)
    await asyncio.to_thread(rig.layout.base(base.base_id, base.format).unlink)
    assert not await watched.loop.run_once()
    assert (await row_of(rig, base)).state is BaseState.READY
    monkeypatch.setattr("cacheagent.loops.reinspector.POLL", 0.01)
    running = asyncio.ensure_future(watched.loop.run())
    try:
        other = await bring(rig, glance.add(DATA[1:]))
        await make_old(rig, other)
        async with asyncio.timeout(30):
            while (await row_of(rig, other)).inspection_version < rig.parts.inspection_version:
                await rig.parts.store.usage()  # a turn of the loop, with time for the threads
    finally:
        running.cancel()
        await asyncio.wait({running})
