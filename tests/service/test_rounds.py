"""Differences that are mended while requests are served: nothing that is worked on is touched."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import CatalogError
from cacheagent.loops.reconciler import INTERVAL
from cacheagent.metrics import DRIFT_KINDS
from cacheagent.model import (
    BaseState,
    CacheResult,
    Caller,
    DiskFormat,
    DiskSpec,
    DiskState,
    ImageId,
)
from cacheagent.policy.layout import unfinished
from cacheagent.service.events import EventKind
from tests.fakes import lying_glance
from tests.fakes.qcow2 import write_overlay
from tests.fakes.values import NOW, base_id, disk, disk_key, image_id
from tests.service.rig import gathered, recorded, state_of, until

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Base, DiskKey
    from cacheagent.policy.drift import DriftPlan
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = b"data" * (MIB // 4)
NOBODY = Caller()
RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
KEY, OTHER = disk_key(1), disk_key(2)


@pytest.fixture
def image(glance: LyingGlance) -> ImageId:
    """Give an image."""
    return glance.add(DATA)


@pytest.fixture
async def base(rig: Rig, image: ImageId) -> Base:
    """Bring its base in."""
    return (await rig.bases.ensure(image, NOBODY)).base


async def make(rig: Rig, image: ImageId | None, key: DiskKey = KEY) -> Path:
    """Make a disk, and give its path."""
    view, _ = await rig.disks.create(key, DiskSpec(image_id=image, size=2 * MIB), NOBODY)
    return view.path


def put(path: Path) -> Path:
    """Put a file there."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"left")
    return path


async def a_round(rig: Rig, after: float = INTERVAL) -> DriftPlan:
    """Make a round so many seconds after the last one, and give what it found."""
    rig.clock.now += after
    return await rig.reconcile.check(NOW)


async def differences(rig: Rig) -> dict[str, int]:
    """Make a round, and count what it found."""
    counts = (await a_round(rig)).counts()
    return {kind: count for kind, count in counts.items() if count}


# --- disks --------------------------------------------------------------------------------------


async def test_nothing_is_done_where_all_agrees(rig: Rig, image: ImageId) -> None:
    """A round on a sound host changes nothing."""
    await make(rig, image)
    assert await differences(rig) == {}


async def test_disk_that_somebody_removed_is_dropped(rig: Rig, image: ImageId) -> None:
    """What the watcher may have missed is found."""
    path = await make(rig, image)
    await make(rig, image, OTHER)
    path.unlink()
    assert await differences(rig) == {"disk_missing": 1}
    assert list(dict(await gathered(rig.disks.instances()))) == [OTHER.instance_id]
    assert await differences(rig) == {}


async def test_overlay_of_somebody_else_is_taken_in(rig: Rig, base: Base) -> None:
    """A disk that was laid where ours lie shows up, and its base is in use by it."""
    path = rig.layout.disk(KEY, QCOW2)
    backing = os.path.relpath(rig.layout.base(base.base_id, base.format), path.parent)
    write_overlay(path, backing)
    told = rig.parts.events.follow()
    hearing = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    assert await differences(rig) == {"disk_unlisted": 1}
    event = await hearing
    assert (event.kind, event.facts["reason"]) == (EventKind.DISK_CREATED, "found")
    assert (await rig.disks.show(KEY)).disk.base_id == base.base_id
    assert [user.key for user in await recorded(rig, base)] == [KEY]


async def test_pending_disk_that_nobody_works_on_has_failed(rig: Rig) -> None:
    """A row that an error has left behind holds no base for ever."""
    await rig.parts.catalog.begin_disk(disk(KEY, None, state=DiskState.PENDING))
    assert await differences(rig) == {"state_stale": 1}
    assert await state_of(rig, KEY) is DiskState.FAILED
    assert await differences(rig) == {}


async def test_pending_disk_whose_file_is_complete_is_ready(rig: Rig, image: ImageId) -> None:
    """Only the last step was missing."""
    await make(rig, image)
    made = (await rig.disks.show(KEY)).disk
    await rig.parts.catalog.remove_disk(KEY, NOW)
    await rig.parts.catalog.begin_disk(made)
    assert await differences(rig) == {"state_stale": 1}
    assert await state_of(rig, KEY) is DiskState.READY


async def test_disk_that_is_being_made_is_left_alone(
    rig: Rig, glance: LyingGlance, image: ImageId
) -> None:
    """A creation that waits for its image for longer than two rounds keeps its row and files."""
    gate = asyncio.Event()
    glance.lie("data", lying_glance.paused(MIB // 2, gate))
    await rig.disks.begin(KEY, DiskSpec(image_id=image, size=2 * MIB), NOBODY)
    await until(lambda: rig.bases.coming() and glance.calls("data"))
    making = put(rig.layout.unfinished_disk(KEY, QCOW2))
    for _ in range(3):
        assert await differences(rig) == {}
    assert await state_of(rig, KEY) is DiskState.PENDING
    assert (making.exists(), len(rig.left_in_ingest())) == (True, 1)
    gate.set()
    await until(lambda: not rig.creation.wanted())
    assert await state_of(rig, KEY) is DiskState.READY


async def test_doubt_is_counted_once(rig: Rig, image: ImageId) -> None:
    """A disk that cannot be read is reported when that is found, and not in each round again."""
    await make(rig, image)
    put(rig.layout.disk(OTHER, QCOW2))
    for _ in range(3):
        assert await differences(rig) == {"doubt": 1}
    assert rig.metric("reconcile_drift_total", kind="doubt") == 1
    assert rig.metric("unknown_files") == 0


async def test_file_of_somebody_else_is_counted_once(rig: Rig) -> None:
    """The gauge says how many there are, the counter how many were found."""
    put(rig.layout.bases / "precious")
    for _ in range(3):
        assert await differences(rig) == {"unknown_file": 1}
    assert rig.metric("reconcile_drift_total", kind="unknown_file") == 1
    assert rig.metric("unknown_files") == 1


# --- bases --------------------------------------------------------------------------------------


async def test_base_that_somebody_put_there_is_taken_in(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """A base with its manifest, copied from another host, saves the download."""
    await rig.parts.catalog.remove_base(base.base_id)
    assert await differences(rig) == {"base_unlisted": 1}
    assert (await rig.bases.ensure(image, NOBODY)).result is CacheResult.HIT
    assert len(glance.calls("data")) == 1


async def test_base_that_is_gone_and_needed_comes_again(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """Somebody removed the base of a disk: it is fetched anew."""
    await make(rig, image)
    rig.layout.base(base.base_id, base.format).unlink()
    assert await differences(rig) == {"base_missing": 1}
    await until(lambda: len(glance.calls("data")) == 2 and not rig.bases.coming())
    assert await differences(rig) == {}


async def test_base_that_does_not_come_again_is_told_once(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """While it is being fetched anew, however long that takes, no round begins that again."""
    await make(rig, image)
    rig.layout.base(base.base_id, base.format).unlink()
    glance.always("show", lying_glance.status(503))
    assert await differences(rig) == {"base_missing": 1}
    for _ in range(3):
        assert await differences(rig) == {}
    assert rig.metric("reconcile_drift_total", kind="base_missing") == 1


async def test_base_that_is_gone_and_unused_is_forgotten(rig: Rig, base: Base) -> None:
    """Nobody needs it, so nothing is fetched."""
    rig.layout.base(base.base_id, base.format).unlink()
    assert (await a_round(rig)).lost_bases == (base.base_id,)
    assert await rig.parts.catalog.bases() == []
    await a_round(rig)
    assert list(rig.layout.bases.iterdir()) == []


async def test_base_that_somebody_works_on_is_left_alone(rig: Rig, base: Base) -> None:
    """Whoever holds the lock of a base is in the midst of something."""
    rig.layout.base(base.base_id, base.format).unlink()
    async with rig.bases.locks.hold(base.base_id):
        assert await differences(rig) == {}
    assert len(await rig.parts.catalog.bases()) == 1


@pytest.mark.parametrize("in_trash", [True, False])
async def test_eviction_that_got_stuck_is_ended_or_taken_back(
    rig: Rig, base: Base, *, in_trash: bool
) -> None:
    """An error in the midst of an eviction leaves no base that is neither here nor gone."""
    await rig.parts.catalog.begin_eviction(base.base_id, NOW)
    if in_trash:
        await rig.parts.store.trash_base(base.base_id, base.format)
    for _ in range(3):
        await a_round(rig)
    rows = await rig.parts.catalog.bases()
    assert [row.state for row in rows] == ([] if in_trash else [BaseState.READY])
    assert list(rig.layout.trash.iterdir()) == []


async def test_base_in_the_trash_that_is_used_comes_back(rig: Rig, base: Base) -> None:
    """What an error has left in the trash is not removed from under an overlay."""
    path = rig.layout.base(base.base_id, base.format)
    write_overlay(rig.layout.disk(KEY, QCOW2), path)
    await rig.parts.catalog.begin_eviction(base.base_id, NOW)
    await rig.parts.store.trash_base(base.base_id, base.format)
    await a_round(rig)
    assert path.read_bytes() == DATA
    assert [row.state for row in await rig.parts.catalog.bases()] == [BaseState.READY]
    assert await differences(rig) == {}


# --- useless files ------------------------------------------------------------------------------


async def test_useless_files_go_in_the_second_round(rig: Rig, image: ImageId, base: Base) -> None:
    """What nobody touches from one round to the next, and nobody works on, is collected."""
    await make(rig, image)
    layout, gone = rig.layout, base_id(7)
    template = next(layout.templates.iterdir())
    blank = layout.template(None, QCOW2, 512, "")
    leftovers = [
        layout.part(image_id(1)),
        layout.part_record(image_id(1)),
        layout.conversion(image_id(1), RAW),
        layout.manifest(gone, RAW),
        unfinished(layout.manifest(base.base_id, RAW)),
        layout.templates / template.name.replace(base.base_id, gone),
        unfinished(template),
        unfinished(blank),
        layout.trashed(gone, RAW),
        layout.trashed_manifest(gone, RAW),
        layout.quarantined(gone, RAW),
        layout.unfinished_disk(KEY, RAW),
    ]
    for leftover in (*leftovers, blank):
        put(leftover)
    assert await differences(rig) == {}
    assert [leftover for leftover in leftovers if not leftover.exists()] == []
    assert await differences(rig) == {"ingest_stale": len(leftovers)}
    assert [leftover for leftover in leftovers if leftover.exists()] == []
    assert await differences(rig) == {}
    assert blank.exists()
    assert template.exists()


async def test_rounds_that_follow_at_once_remove_nothing(rig: Rig) -> None:
    """However often somebody asks for a round, a file has its time to become something."""
    part = put(rig.layout.part(image_id(1)))
    for _ in range(5):
        await a_round(rig, after=1)
    assert part.exists()
    await a_round(rig)
    assert not part.exists()


async def test_file_that_is_touched_stays(rig: Rig) -> None:
    """Whoever writes to it has not abandoned it."""
    part = put(rig.layout.part(image_id(1)))
    await a_round(rig)
    part.write_bytes(b"more than before")
    await a_round(rig)
    assert part.exists()
    await a_round(rig)
    assert not part.exists()


async def test_download_that_begins_again_keeps_its_part(
    rig: Rig, glance: LyingGlance, image: ImageId
) -> None:
    """A part that was useless in the round before is of use once somebody asks for the image."""
    part = put(rig.layout.part(image))
    await a_round(rig)
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    asked = asyncio.ensure_future(rig.bases.ensure(image, NOBODY))
    await until(lambda: glance.calls("data"))
    await a_round(rig)
    assert part.exists()
    gate.set()
    assert (await asked).result is CacheResult.MISS


async def test_trash_with_a_second_name_is_put_back(rig: Rig, base: Base, tmp_path: Path) -> None:
    """A base whose row has gone and that somebody linked elsewhere is one again."""
    path = rig.layout.base(base.base_id, base.format)
    (tmp_path / "second name").hardlink_to(path)
    await rig.parts.store.trash_base(base.base_id, base.format)
    await rig.parts.catalog.remove_base(base.base_id)
    await a_round(rig)
    assert path.exists()
    assert len(await rig.parts.catalog.bases()) == 1


async def test_one_difference_keeps_no_other_from_being_mended(
    rig: Rig, image: ImageId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong with one disk is logged, and the next one is looked at."""
    for key in (KEY, OTHER, disk_key(3)):
        path = await make(rig, image, key)
        if key is not KEY:
            path.unlink()
    notice = rig.creation.notice

    async def failing(key: DiskKey) -> bool:
        if key == OTHER:
            raise CatalogError("the disk is gone")
        return await notice(key)

    monkeypatch.setattr(rig.creation, "notice", failing)
    await a_round(rig)
    assert set(dict(await gathered(rig.disks.instances()))) == {KEY.instance_id, OTHER.instance_id}


async def test_rounds_disturb_nobody(rig: Rig, glance: LyingGlance, image: ImageId) -> None:
    """However many rounds are made amid creations, deletions, downloads and evictions.

    All succeed, and nothing that is only on its way is taken for a difference.
    """
    other = glance.add(b"other" * 1000)
    # Its template is there: in a test minutes pass while it is made.
    await make(rig, image, disk_key(9))
    rounds = 0

    async def schedule(number: int) -> None:
        for _ in range(6):
            await make(rig, image, disk_key(number))
            await rig.disks.delete(disk_key(number))

    async def operate() -> None:
        for _ in range(6):
            await rig.bases.ensure(other, NOBODY)
            await rig.images.evict(other, NOBODY)

    async def reconcile() -> None:
        nonlocal rounds
        while True:
            await a_round(rig)
            rounds += 1

    reconciling = asyncio.ensure_future(reconcile())
    try:
        await asyncio.gather(operate(), *(schedule(number) for number in range(1, 6)))
        await until(lambda: rounds > 3)
    finally:
        reconciling.cancel()
        await asyncio.wait([reconciling])
    assert reconciling.cancelled()
    assert await differences(rig) == {}
    found = {kind: rig.metric("reconcile_drift_total", kind=kind) for kind in DRIFT_KINDS}
    assert found == dict.fromkeys(DRIFT_KINDS, 0)
    assert list(dict(await gathered(rig.disks.instances()))) == [disk_key(9).instance_id]
