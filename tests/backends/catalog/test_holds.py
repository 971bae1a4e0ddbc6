"""Who holds a base: leases that end by themselves, beside disks and pins."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.catalog import Catalog, DiskIntent
from cacheagent.model import BaseState, CachedImage, Lease, User, UserKind
from tests.fakes.values import NOW, base, base_id, disk, disk_key, glance_image, image_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SOON = NOW + timedelta(minutes=1)
LATER = NOW + timedelta(hours=1)
LEASED = User(kind=UserKind.LEASE, detail="somebody")


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    """Give a catalog with two bases, each with its image."""
    opened = await Catalog.open(tmp_path / "catalog.db")
    for number in (1, 2):
        await opened.publish(base(number), [glance_image(number)], NOW)
    yield opened
    await opened.close()


def lease(name: str = "a", number: int = 1) -> Lease:
    """Give a lease on the base of this number, for a minute."""
    return Lease(lease_id=name, base_id=base_id(number), holder="somebody", expires_at=SOON)


async def test_the_base_of_an_image_is_found_and_leased_in_one_step(catalog: Catalog) -> None:
    """Who looks an image up holds its base from then on, against any eviction."""
    found = await catalog.lease_image(image_id(1), "a", holder="somebody", expires_at=SOON)
    cached = CachedImage(image=glance_image(1), base_id=base_id(1), requested_at=NOW)
    assert found == (cached, base(1))
    assert await catalog.leases(NOW) == [lease()]
    assert await catalog.begin_eviction(base_id(1), NOW) == (LEASED,)
    assert await catalog.base(base_id(1)) == base(1)


@pytest.mark.parametrize("state", [BaseState.EVICTING, BaseState.QUARANTINED])
async def test_a_base_on_its_way_out_is_not_leased(catalog: Catalog, state: BaseState) -> None:
    """Who comes too late gets nothing, and leaves nothing behind."""
    await catalog.set_base_state(base_id(1), state)
    assert await catalog.lease_image(image_id(1), "a", holder="x", expires_at=SOON) is None
    assert not await catalog.lease(lease("b"))
    assert await catalog.leases(NOW) == []


async def test_an_image_without_a_base_has_nothing_to_lease(catalog: Catalog) -> None:
    """Neither an image that nobody knows nor one that is still to come can be leased."""
    await catalog.intend_image(glance_image(3), NOW)
    for number in (3, 4):
        found = await catalog.lease_image(image_id(number), "a", holder="x", expires_at=SOON)
        assert found is None
    assert not await catalog.lease(lease(number=4))
    assert await catalog.leases(NOW) == []


async def test_a_lease_ends_by_itself(catalog: Catalog) -> None:
    """A lease that somebody forgot keeps its base until its time, and not for ever."""
    assert await catalog.lease(lease())
    before = SOON - timedelta(microseconds=1)
    assert await catalog.users_of(base_id(1), before) == (LEASED,)
    assert await catalog.users_of(base_id(1), SOON) == ()
    assert await catalog.users(SOON) == {}
    assert await catalog.leases(SOON) == []
    assert await catalog.begin_eviction(base_id(1), SOON) == ()
    assert await catalog.base(base_id(1)) == base(1, state=BaseState.EVICTING)


async def test_a_lease_can_be_made_longer(catalog: Catalog) -> None:
    """Who needs more time records the same lease again; it is one lease still."""
    await catalog.lease(lease())
    longer = replace(lease(), expires_at=LATER)
    assert await catalog.lease(longer)
    assert await catalog.leases(NOW) == [longer]


async def test_a_lease_holds_what_was_leased_last(catalog: Catalog) -> None:
    """Who leases another base by the same name holds that one, and no longer the first."""
    await catalog.lease(lease())
    await catalog.lease_image(image_id(2), "a", holder="other", expires_at=SOON)
    assert await catalog.leases(NOW) == [replace(lease(number=2), holder="other")]
    assert await catalog.begin_eviction(base_id(1), NOW) == ()


async def test_leases_are_told_by_their_end(catalog: Catalog) -> None:
    """Those that expire first come first."""
    late = replace(lease("a"), expires_at=LATER)
    for each in (late, lease("b", 2)):
        await catalog.lease(each)
    assert await catalog.leases(NOW) == [lease("b", 2), late]


async def test_a_lease_is_released_once_and_again(catalog: Catalog) -> None:
    """What was released holds nothing, and to release it twice is fine."""
    await catalog.lease(lease())
    await catalog.lease(lease("b"))
    for _ in range(2):
        await catalog.release("a")
    assert await catalog.leases(NOW) == [lease("b")]


async def test_the_row_of_a_disk_takes_the_place_of_a_lease(catalog: Catalog) -> None:
    """From lookup to disk the base is held without a gap, and afterwards by the disk alone."""
    await catalog.lease(lease())
    assert await catalog.begin_disk(disk(disk_key(1), 1), "a") is DiskIntent.RECORDED
    holder = User(kind=UserKind.DISK, key=disk_key(1))
    assert await catalog.users_of(base_id(1), NOW) == (holder,)
    assert await catalog.leases(NOW) == []


async def test_a_disk_that_is_there_ends_the_lease_too(catalog: Catalog) -> None:
    """Who finds the disk made needs no base any more."""
    await catalog.adopt(disks=[disk(disk_key(1), 1)])
    await catalog.lease(lease(number=2))
    assert await catalog.begin_disk(disk(disk_key(1), 2), "a") is DiskIntent.EXISTS
    assert await catalog.leases(NOW) == []


async def test_expired_leases_are_dropped_and_a_start_drops_all(catalog: Catalog) -> None:
    """Rows of leases do not pile up; after a crash nobody holds any."""
    for each in (lease("a"), replace(lease("b"), expires_at=LATER)):
        await catalog.lease(each)
    await catalog.drop_leases(SOON)
    assert [each.lease_id for each in await catalog.leases(NOW)] == ["b"]
    await catalog.drop_leases()
    assert await catalog.leases(NOW) == []


async def test_all_holders_of_all_bases_are_told_at_once(catalog: Catalog) -> None:
    """Disks, pins and leases are named base by base; a base that nobody holds is left out."""
    await catalog.adopt(disks=[disk(disk_key(1), 1)])
    await catalog.pin(image_id(1), NOW)
    await catalog.lease(lease())
    users = await catalog.users(NOW)
    assert set(users) == {base_id(1)}
    assert set(users[base_id(1)]) == {
        User(kind=UserKind.DISK, key=disk_key(1)),
        User(kind=UserKind.PIN, detail=image_id(1)),
        LEASED,
    }
    assert set(await catalog.users_of(base_id(1), NOW)) == set(users[base_id(1)])
