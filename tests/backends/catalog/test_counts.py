"""What the catalog holds, counted for status and metrics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.catalog import Catalog
from cacheagent.model import BaseState, Counts, DiskFormat, DiskMode, DiskState, Lease
from tests.fakes.values import NOW, base, base_id, disk, disk_key, glance_image, image_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SOON = NOW + timedelta(minutes=1)
LATER = NOW + timedelta(hours=1)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    """Give a catalog that knows nothing."""
    opened = await Catalog.open(tmp_path / "catalog.db")
    yield opened
    await opened.close()


async def test_an_empty_catalog_counts_nothing(catalog: Catalog) -> None:
    """A first start has a status too."""
    assert await catalog.counts(NOW) == Counts(
        bases=0,
        quarantined=0,
        in_use=0,
        pinned=0,
        leases=0,
        disks=0,
        instances=0,
        ready_disks={DiskMode.OVERLAY: 0, DiskMode.FULL: 0},
        allocated=0,
        virtual=0,
        apparent=0,
        oldest_unused=None,
    )


async def test_bases_are_counted_by_who_holds_them(catalog: Catalog) -> None:
    """A disk, a pin or a lease keeps a base; of the others the one unused longest is told."""
    for number in range(1, 6):
        used_at = NOW - timedelta(days=number)
        await catalog.publish(
            base(number, fetched_at=used_at, last_used_at=used_at), [glance_image(number)], NOW
        )
    await catalog.adopt(disks=[disk(disk_key(1), 1), disk(disk_key(1, "copy"), 5)])
    await catalog.pin(image_id(2), NOW)
    await catalog.pin(image_id(9), NOW)
    await catalog.lease(Lease(lease_id="a", base_id=base_id(3), holder="somebody", expires_at=SOON))
    counts = await catalog.counts(NOW)
    assert (counts.bases, counts.in_use, counts.pinned, counts.leases) == (5, 4, 1, 1)
    assert counts.oldest_unused == NOW - timedelta(days=4)
    later = await catalog.counts(LATER)
    assert (later.in_use, later.leases) == (3, 0)


async def test_bytes_are_those_of_all_bases(catalog: Catalog) -> None:
    """A raw file is as long as its disk, a qcow2 file as long as it came."""
    await catalog.publish(base(1, allocated=10, virtual_size=100), [], NOW)
    await catalog.publish(base(2, allocated=1, virtual_size=200, format=DiskFormat.QCOW2), [], NOW)
    counts = await catalog.counts(NOW)
    assert (counts.allocated, counts.virtual, counts.apparent) == (11, 300, 1100)


async def test_disks_are_counted_by_mode_once_they_are_ready(catalog: Catalog) -> None:
    """What failed or is being made is a disk, but none that anybody can use."""
    full = disk(disk_key(2), 1, mode=DiskMode.FULL)
    failed = disk(disk_key(2, "b"), 1, state=DiskState.FAILED)
    pending = disk(disk_key(3), 1, state=DiskState.PENDING)
    await catalog.adopt(disks=[disk(disk_key(1), 1), full, failed, pending])
    counts = await catalog.counts(NOW)
    assert (counts.disks, counts.instances) == (4, 3)
    assert counts.ready_disks == {DiskMode.OVERLAY: 1, DiskMode.FULL: 1}


async def test_an_image_has_the_state_of_its_base(catalog: Catalog) -> None:
    """One that is still to come has none, and says so."""
    await catalog.publish(base(1), [glance_image(1), glance_image(4)], NOW)
    await catalog.publish(base(2, state=BaseState.QUARANTINED), [glance_image(2)], NOW)
    await catalog.intend_image(glance_image(3), NOW)
    assert await catalog.image_states() == {
        image_id(1): BaseState.READY,
        image_id(2): BaseState.QUARANTINED,
        image_id(3): BaseState.INGESTING,
        image_id(4): BaseState.READY,
    }
    assert (await catalog.counts(NOW)).quarantined == 1
