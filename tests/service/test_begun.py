"""Disks of which somebody was told that they are on their way."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import DiskConflictError, ImageNotFoundError
from cacheagent.model import Caller, DiskSpec, DiskState, ImageId
from tests.fakes.values import disk_key
from tests.needs import require_programs
from tests.service.rig import state_of, until

if TYPE_CHECKING:
    from datetime import datetime

    from cacheagent.backends.catalog import DiskIntent
    from cacheagent.model import Disk, DiskKey
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

KEY = disk_key(1)
NOBODY = Caller()
SMALL, LARGE = (DiskSpec(image_id=None, size=size << 20) for size in (1, 2))


async def settled(rig: Rig) -> DiskState:
    """Wait until the disk is no longer on its way, and tell what has become of it."""
    while (state := await state_of(rig, KEY)) is DiskState.PENDING:
        pass
    return state


async def test_one_who_goes_away_while_a_disk_is_begun_leaves_it_begun(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent is never written down without somebody who works on it."""
    require_programs("qemu-img")
    image_id = glance.add(b"x" * 4096)
    begin_disk = rig.parts.catalog.begin_disk
    writing = asyncio.Event()

    async def slow(disk: Disk, lease_id: str | None = None) -> DiskIntent:
        writing.set()
        return await begin_disk(disk, lease_id)

    monkeypatch.setattr(rig.parts.catalog, "begin_disk", slow)
    leaving = asyncio.create_task(
        rig.disks.begin(KEY, DiskSpec(image_id=image_id, size=None), NOBODY)
    )
    await writing.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert await settled(rig) is DiskState.READY


async def test_one_who_begins_what_is_just_failing_learns_that_it_failed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was told that a disk is on its way finds its failure, not that it is unknown."""
    unknown = DiskSpec(image_id=ImageId(str(uuid.uuid4())), size=None)
    remove_disk = rig.parts.catalog.remove_disk
    clearing, gate = asyncio.Event(), asyncio.Event()

    async def slow(key: DiskKey, now: datetime) -> None:
        clearing.set()
        await gate.wait()
        await remove_disk(key, now)

    monkeypatch.setattr(rig.parts.catalog, "remove_disk", slow)
    failing = asyncio.create_task(rig.disks.create(KEY, unknown, NOBODY))
    await clearing.wait()
    _, begun = await rig.disks.begin(KEY, unknown, NOBODY)
    gate.set()
    with pytest.raises(ImageNotFoundError):
        await failing
    assert (begun, await settled(rig)) == (True, DiskState.FAILED)


async def test_another_request_that_goes_away_leaves_no_disk_on_its_way(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is begun is made, whoever asks for another one by its name and gives up."""
    require_programs("qemu-img")
    begin_disk = rig.parts.catalog.begin_disk
    written, gate = asyncio.Event(), asyncio.Event()

    async def slow(disk: Disk, lease_id: str | None = None) -> DiskIntent:
        intent = await begin_disk(disk, lease_id)
        written.set()
        await gate.wait()
        return intent

    monkeypatch.setattr(rig.parts.catalog, "begin_disk", slow)
    begun = asyncio.create_task(rig.disks.begin(KEY, SMALL, NOBODY))
    await written.wait()
    other = asyncio.create_task(rig.disks.create(KEY, LARGE, NOBODY))
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    other.cancel()
    await asyncio.wait({begun, other})
    await until(lambda: not rig.creation.wanted())
    assert await state_of(rig, KEY) is DiskState.READY
    assert begun.result()[1]
    assert isinstance(other.exception(), DiskConflictError)


async def test_of_two_who_begin_one_learns_of_the_conflict(rig: Rig) -> None:
    """Nobody is told that a disk is on its way while another one of its name is."""
    require_programs("qemu-img")
    begun, refused = await asyncio.gather(
        *(rig.disks.begin(KEY, spec, NOBODY) for spec in (SMALL, LARGE)), return_exceptions=True
    )
    assert isinstance(begun, tuple)
    assert begun[1]
    assert isinstance(refused, DiskConflictError)
    assert await settled(rig) is DiskState.READY
    assert (await rig.disks.show(KEY)).disk.spec == SMALL


async def test_two_who_begin_the_same_get_one_disk(rig: Rig) -> None:
    """Both are told that it is on its way, and one of them that it was begun for him."""
    require_programs("qemu-img")
    both = await asyncio.gather(*(rig.disks.begin(KEY, SMALL, NOBODY) for _ in range(2)))
    assert sorted(begun for _, begun in both) == [False, True]
    assert {view.disk.state for view, _ in both} == {DiskState.PENDING}
    await until(lambda: not rig.creation.wanted())
    assert await state_of(rig, KEY) is DiskState.READY
    assert await rig.disks.begin(KEY, SMALL, NOBODY) == (await rig.disks.show(KEY), False)


async def test_of_two_who_begin_what_has_the_name_of_another_disk_both_learn_of_it(
    rig: Rig,
) -> None:
    """Nobody is told that a disk is on its way whose name stands for one that is there."""
    require_programs("qemu-img")
    there, _ = await rig.disks.create(KEY, LARGE, NOBODY)
    both = await asyncio.gather(
        *(rig.disks.begin(KEY, SMALL, NOBODY) for _ in range(2)), return_exceptions=True
    )
    assert [type(each) for each in both] == [DiskConflictError] * 2
    assert (await rig.disks.show(KEY)).disk == there.disk
    # Who asks for what is there gets it.
    found = await asyncio.gather(*(rig.disks.begin(KEY, LARGE, NOBODY) for _ in range(2)))
    assert [(view.disk, begun) for view, begun in found] == [(there.disk, False)] * 2
