"""A disk that somebody takes away behind the agent's back, and what is told of disks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import DigestMismatchError
from cacheagent.model import Caller, DiskSpec, DiskState
from cacheagent.service.events import EventKind
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import assert_no_trace, state_of, until

if TYPE_CHECKING:
    from cacheagent.model import ImageId
    from cacheagent.service.events import Event
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

DATA = b"data" * (1 << 18)
NOBODY = Caller()
KEY, OTHER = disk_key(1), disk_key(2)


@pytest.fixture
def image_id(glance: LyingGlance) -> ImageId:
    """Give an image."""
    return glance.add(DATA)


def of(image_id: ImageId) -> DiskSpec:
    """Ask for an overlay of the image."""
    return DiskSpec(image_id=image_id, size=None)


async def told(rig: Rig) -> list[Event]:
    """Give all that was told of disks."""
    rig.parts.events.close()
    # Of another run: whatever is still there is given.
    events = [event async for event in rig.parts.events.follow("another-0")]
    return [event for event in events if event.kind.startswith("disk.")]


async def test_disk_that_was_taken_away_is_dropped(rig: Rig, image_id: ImageId) -> None:
    """Its row goes, its base was in use until now, and whoever watches is told."""
    await rig.disks.create(OTHER, of(image_id), NOBODY)
    view, _ = await rig.disks.create(KEY, of(image_id), NOBODY)
    view.path.unlink()
    rig.clock.now += 100
    assert await rig.creation.notice(KEY)
    assert not await rig.creation.notice(KEY)
    assert not await rig.creation.notice(OTHER)
    (base,) = await rig.parts.catalog.bases()
    assert base.last_used_at == rig.clock.time()
    assert [disk.key for disk in await rig.parts.catalog.disks()] == [OTHER]
    event = (await told(rig))[-1]
    assert (event.kind, event.facts) == (
        EventKind.DISK_GONE,
        {
            "instance_id": KEY.instance_id,
            "name": "root",
            "image_id": image_id,
            "path": str(view.path),
            "reason": "deleted outside",
        },
    )


@pytest.mark.parametrize("doubt", ["empty", "missing", "no folder"])
async def test_doubt_keeps_the_disk(rig: Rig, image_id: ImageId, doubt: str) -> None:
    """Where the folder may only be unmounted, or cannot be looked at, the disk stays known."""
    view, _ = await rig.disks.create(KEY, of(image_id), NOBODY)
    view.path.unlink()
    view.path.parent.rmdir()
    if doubt != "no folder":
        rig.layout.instances_dir.rename(rig.layout.instances_dir.with_name("mounted"))
    if doubt == "empty":
        rig.layout.instances_dir.mkdir()
    if doubt == "no folder":
        view.path.parent.touch()
    assert not await rig.creation.notice(KEY)
    assert await state_of(rig, KEY) is DiskState.READY


async def test_last_disk_that_was_seen_going_is_no_doubt(rig: Rig, image_id: ImageId) -> None:
    """A folder of instances that is empty since the last disk was deleted is not unmounted."""
    view, _ = await rig.disks.create(KEY, of(image_id), NOBODY)
    view.path.unlink()
    view.path.parent.rmdir()
    assert await rig.creation.notice(KEY, seen=True)
    await assert_no_trace(rig, KEY)


async def test_disk_that_is_being_made_is_waited_for(
    rig: Rig, glance: LyingGlance, image_id: ImageId
) -> None:
    """What goes in the moment in which it was made is judged when it is clear what it is."""
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    creation = asyncio.create_task(rig.disks.create(KEY, of(image_id), NOBODY))
    await until(lambda: glance.calls("data"))
    noticing = asyncio.create_task(rig.creation.notice(KEY))
    gate.set()
    view, _ = await creation
    assert not await noticing
    assert view.path.is_file()


async def test_what_happens_to_disks_is_told(
    rig: Rig, glance: LyingGlance, image_id: ImageId
) -> None:
    """Made, removed by request, failed: each is one event, with what tells the disk."""
    view, _ = await rig.disks.create(KEY, of(image_id), NOBODY)
    await rig.disks.delete(KEY)
    await rig.disks.delete(KEY)
    with pytest.raises(DigestMismatchError):
        await rig.disks.create(OTHER, of(glance.add(DATA, os_hash_value="0" * 128)), NOBODY)
    created, gone, failed = await told(rig)
    assert (created.kind, created.facts["path"]) == (EventKind.DISK_CREATED, str(view.path))
    assert created.facts["base_id"] == view.disk.base_id
    assert (gone.kind, gone.facts["reason"]) == (EventKind.DISK_GONE, "request")
    assert (failed.kind, failed.facts["instance_id"]) == (
        EventKind.DISK_FAILED,
        OTHER.instance_id,
    )
    assert "Glance says" in str(failed.facts["error"])
