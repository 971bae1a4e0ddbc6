"""The scrubber: what it reads, in which order, and what stops it for a while."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.loops.scrubber import POLL, REST, Scrubber
from cacheagent.model import BaseState, Caller, DiskSpec, VerificationOutcome
from cacheagent.service.repair import Repair
from cacheagent.service.verify import Verify
from tests.fakes.values import disk_key
from tests.service.rig import Rig, in_a_task, rig_on, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime
    from pathlib import Path

    from cacheagent.model import Base
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DAY = 86400.0
WEEK = 7 * DAY
NOBODY = Caller()


class Sleep:
    """Lets the clock of a rig pass instead of time, and stops the loop after a while."""

    def __init__(self, rig: Rig, rounds: int) -> None:
        self.slept: list[float] = []
        self._rig = rig
        self._rounds = rounds

    async def __call__(self, seconds: float) -> None:
        """Wait."""
        self.slept.append(seconds)
        self._rig.clock.now += seconds
        if len(self.slept) >= self._rounds:
            raise asyncio.CancelledError


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire the services of an agent on it."""
    async with in_a_task(rig_on(tmp_path, glance.url)) as wired:
        yield wired


def scrubber_on(
    rig: Rig, rounds: int = 1, runs: dict[str, datetime | None] | None = None
) -> tuple[Scrubber, Sleep]:
    """Give a scrubber, and what it sleeps with."""
    parts, sleep = rig.parts, Sleep(rig, rounds)
    repair = Repair(parts, rig.bases, rig.use)
    verify = Verify(parts, rig.bases, repair, access=rig.access)
    last_runs = {} if runs is None else runs
    made = Scrubber(verify, repair, parts.config, parts.now, parts.clock, last_runs, sleep=sleep)
    return made, sleep


async def bring(rig: Rig, glance: LyingGlance, **metadata: object) -> Base:
    """Bring a base of a megabyte in."""
    return (await rig.bases.ensure(glance.add(os.urandom(MIB), **metadata), NOBODY)).base


async def row_of(rig: Rig, base: Base) -> Base:
    """Look at the row of a base."""
    row = await rig.parts.catalog.base(base.base_id)
    assert row is not None
    return row


def spoil(rig: Rig, base: Base) -> Path:
    """Let a base rot."""
    path = rig.layout.base(base.base_id, base.format)
    path.chmod(0o600)
    path.write_bytes(os.urandom(MIB))
    return path


async def test_nothing_is_read_before_its_time(rig: Rig, glance: LyingGlance) -> None:
    """A base that came today is left alone; the loop is seen to run all the same."""
    await bring(rig, glance)
    runs: dict[str, datetime | None] = {}
    scrubber, _ = scrubber_on(rig, runs=runs)
    assert runs == {"scrubber": None}
    assert await scrubber.run_once() is None
    assert runs == {"scrubber": rig.parts.now()}


async def test_each_base_is_read_when_it_is_due(rig: Rig, glance: LyingGlance) -> None:
    """All that are due are read in a row, those that waited longest first, and then none is."""
    first = await bring(rig, glance)
    rig.clock.now += DAY
    second = await bring(rig, glance)
    rig.clock.now += WEEK
    scrubber, _ = scrubber_on(rig)
    done = [await scrubber.run_once() for _ in range(3)]
    assert [each and each.base_id for each in done] == [first.base_id, second.base_id, None]
    assert (await row_of(rig, second)).verified_at == rig.parts.now()


async def test_loop_looks_again_and_again(rig: Rig, glance: LyingGlance) -> None:
    """A base that comes to be due is found within a minute."""
    base = await bring(rig, glance)
    rig.clock.now += WEEK - 1.5 * POLL
    scrubber, sleep = scrubber_on(rig, rounds=3)
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    assert sleep.slept == [POLL, POLL, POLL]
    verified = (await row_of(rig, base)).verified_at
    assert verified == rig.parts.now() - timedelta(seconds=POLL)


async def test_interval_0_reads_nothing_but_what_has_no_digest(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """Switched off, it takes the digest of a converted base once, and that is all."""
    async with in_a_task(rig_on(tmp_path, glance.url, scrub={"interval": 0})) as rig:
        base = await bring(rig, glance)
        rig.clock.now += 100 * DAY
        scrubber, _ = scrubber_on(rig)
        assert await scrubber.run_once() is None
        assert (await row_of(rig, base)).verified_at is None


async def test_rotten_base_is_found(rig: Rig, glance: LyingGlance) -> None:
    """Without anybody asking for it, it goes out of use; another one takes its place."""
    base = await bring(rig, glance)
    (image_id,) = glance.images
    await rig.disks.create(disk_key(1), DiskSpec(image_id=image_id, size=None), NOBODY)
    path = spoil(rig, base)
    rig.clock.now += WEEK
    scrubber, _ = scrubber_on(rig)
    done = await scrubber.run_once()
    assert done is not None
    assert done.outcome is VerificationOutcome.DAMAGED
    await until(path.exists)
    assert path.read_bytes() == glance.images[image_id].data


async def test_base_that_cannot_be_read_does_not_hold_up_the_others(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone for an hour; what one of them meets ends nothing."""
    first, second = await bring(rig, glance), await bring(rig, glance)
    rig.clock.now += WEEK
    (oldest, other) = sorted((first, second), key=lambda base: (base.fetched_at, base.base_id))
    really = rig.parts.store.reread

    def fail(base: Base, feed: Callable[[memoryview], object]) -> object:
        if base.base_id == oldest.base_id:
            raise PermissionError("not for you")
        return really(base, feed)

    monkeypatch.setattr(rig.parts.store, "reread", fail)
    scrubber, _ = scrubber_on(rig)
    assert await scrubber.run_once() is None
    done = await scrubber.run_once()
    assert done is not None
    assert done.base_id == other.base_id
    assert await scrubber.run_once() is None
    monkeypatch.undo()
    rig.clock.now += REST
    assert await scrubber.run_once() is not None


async def test_stop_in_the_middle_costs_that_one_base(rig: Rig, glance: LyingGlance) -> None:
    """What was read before stays read; the one that was not is the next after a restart."""
    await bring(rig, glance)
    base = await bring(rig, glance)
    rig.clock.now += WEEK
    scrubber, _ = scrubber_on(rig)
    first = await scrubber.run_once()
    task = asyncio.create_task(scrubber.run_once())
    await until(lambda: rig.metric("scrub_bytes_total") > MIB)
    task.cancel()
    await asyncio.wait({task})
    again, _ = scrubber_on(rig)
    done = await again.run_once()
    assert first is not None
    assert done is not None
    assert {first.base_id, done.base_id} == {row.base_id for row in await rig.parts.catalog.bases()}
    assert base.base_id in {first.base_id, done.base_id}


async def test_rate_is_what_the_operator_set(tmp_path: Path, glance: LyingGlance) -> None:
    """The device is left to the guests between two blocks."""
    scrub = {"bytes_per_second": MIB}
    async with in_a_task(rig_on(tmp_path, glance.url, scrub=scrub)) as rig:
        for _ in range(3):
            await bring(rig, glance)
        rig.clock.now += WEEK
        scrubber, sleep = scrubber_on(rig, rounds=100)
        for _ in range(3):
            await scrubber.run_once()
        assert sum(sleep.slept) == pytest.approx(2, abs=0.2)


async def test_start_fetches_what_a_disk_lacks(rig: Rig, glance: LyingGlance) -> None:
    """What a stop kept from being fetched anew is fetched when the loop begins."""
    base = await bring(rig, glance)
    (image_id,) = glance.images
    await rig.disks.create(disk_key(1), DiskSpec(image_id=image_id, size=None), NOBODY)
    await rig.parts.catalog.set_base_state(base.base_id, BaseState.QUARANTINED)
    await rig.parts.store.quarantine_base(base.base_id, base.format)
    scrubber, _ = scrubber_on(rig)
    with pytest.raises(asyncio.CancelledError):
        await scrubber.run()
    await until(rig.layout.base(base.base_id, base.format).exists)
