"""The agent at a glance, and its gauges."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from cacheagent.model import BaseState, Caller, DiskMode, Lease
from cacheagent.service.status import Status
from tests.fakes.values import base, base_id, disk, disk_key, glance_image, image_id

if TYPE_CHECKING:
    from tests.service.rig import Rig


async def filled(rig: Rig) -> Status:
    """Record bases 1 to 4: used by a disk, pinned, leased and damaged, and unused for a day."""
    now, catalog = rig.parts.now(), rig.parts.catalog
    ago = now - timedelta(days=1)
    states = {3: BaseState.QUARANTINED}
    for number in range(1, 5):
        state = states.get(number, BaseState.READY)
        await catalog.publish(
            base(number, state=state, fetched_at=ago, last_used_at=ago),
            [glance_image(number)],
            now,
        )
    await catalog.intend_image(glance_image(5), now)
    full = disk(disk_key(1, "copy"), 4, mode=DiskMode.FULL)
    await catalog.adopt(disks=[disk(disk_key(1), 1), full])
    await catalog.pin(image_id(2), now)
    lease = Lease(
        lease_id="a", base_id=base_id(4), holder="x", expires_at=now + timedelta(minutes=1)
    )
    assert await catalog.lease(lease)
    return Status(rig.parts, bases=rig.bases, outcome=rig.evictions.outcome, access=rig.access)


async def test_the_status_counts_all_there_is(rig: Rig) -> None:
    """Whoever looks sees how much is there, how much of it is held, and what is damaged."""
    view = await (await filled(rig)).status(Caller())
    assert view.counts == {
        "images": 5,
        "bases": 4,
        "bases_in_use": 3,
        "pinned": 1,
        "quarantined": 1,
        "leases": 1,
        "disks": 2,
        "instances": 1,
        "downloads": 0,
    }
    assert view.cache_bytes == await rig.parts.store.cache_bytes()


async def test_the_watermarks_are_those_that_the_policy_goes_by(rig: Rig) -> None:
    """What is shown is where eviction begins and ends."""
    view = await Status(
        rig.parts, bases=rig.bases, outcome=rig.evictions.outcome, access=rig.access
    ).status(Caller())
    assert (view.high_watermark_bytes, view.low_watermark_bytes) == (
        int(view.space.total * 85 / 100),
        int(view.space.total * 75 / 100),
    )


async def test_the_gauges_tell_the_same(rig: Rig) -> None:
    """A dashboard is brought up to date when somebody reads it."""
    status = await filled(rig)
    await status.refresh_metrics()
    assert [rig.metric(name) for name in ("bases_in_use", "bases_pinned", "leases")] == [3, 1, 1]
    assert rig.metric("oldest_unused_seconds") == timedelta(days=1).total_seconds()
    assert [rig.metric("images", state=state) for state in ("ready", "queued", "quarantined")] == [
        *(3, 1, 1)
    ]
    assert [rig.metric("disks", mode=mode) for mode in DiskMode] == [1, 1]
    assert rig.metric("cache_bytes", kind="virtual") == 4 << 30


async def test_nothing_unused_is_no_time(rig: Rig) -> None:
    """An alert on what is unused for long stays quiet where all is in use."""
    status = await filled(rig)
    await rig.parts.catalog.adopt(disks=[replace(disk(disk_key(2), 3))])
    await status.refresh_metrics()
    assert rig.metric("oldest_unused_seconds") == 0
