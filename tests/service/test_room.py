"""Room is set aside before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import DiskFullError, InsufficientSpaceError, MkfsError, QemuImgError
from cacheagent.model import SpaceUsage
from cacheagent.policy.eviction import Demand, DemandKind, EvictionPolicy
from cacheagent.service.room import ATTEMPTS, Reservation, Room

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BOUNDS = EvictionPolicy(
    max_size=None,
    high_watermark=100,
    low_watermark=100,
    min_free=0,
    min_keep=0,
    min_age=0,
    max_idle=0,
)


async def no_cache() -> int:
    """Count no cache."""
    return 0


def room(available: int, min_free: int = 0) -> Room:
    """Give the ledger of a file system with so many bytes left."""

    async def usage() -> SpaceUsage:
        return SpaceUsage(total=1000, available=available)

    policy = replace(BOUNDS, min_free=min_free)
    return Room(usage, cache_bytes=no_cache, policy=lambda: policy)


async def test_what_cannot_fit_is_refused_with_the_figures() -> None:
    """A request that asks for more than there is learns how much that is."""
    with pytest.raises(InsufficientSpaceError) as refused:
        async with room(100, min_free=30).reserve(71):
            pass
    assert (refused.value.required_bytes, refused.value.available_bytes) == (71, 70)


async def test_reservations_add_up_and_end() -> None:
    """Two ingests never get the same bytes, and the end of one makes room for the next."""
    ledger = room(100)
    async with ledger.reserve(60):
        with pytest.raises(InsufficientSpaceError):
            async with ledger.reserve(41):
                pass
        async with ledger.reserve(40):
            assert ledger.reserved == 100
    assert ledger.reserved == 0


async def test_bytes_that_were_written_count_once() -> None:
    """What has been written is used, not reserved as well, however much that is."""
    ledger = room(100)
    async with ledger.reserve(60) as reservation:
        reservation.spent(50)
        assert ledger.reserved == 10
        reservation.spent(50)
        assert ledger.reserved == 0


async def test_failed_work_leaves_no_reservation() -> None:
    """An ingest that fails gives its room back."""
    ledger = room(100)
    with pytest.raises(ValueError, match="broken"):
        async with ledger.reserve(60):
            raise ValueError("broken")
    assert ledger.reserved == 0


async def test_disk_that_fills_up_meanwhile_is_told_with_the_figures() -> None:
    """Where other files take the room that qemu-img was promised, the answer is still 507."""
    with pytest.raises(InsufficientSpaceError) as refused:
        async with room(100).conversion(60):
            raise QemuImgError("No space left on device", no_space=True)
    assert (refused.value.required_bytes, refused.value.available_bytes) == (60, 100)
    with pytest.raises(QemuImgError):
        async with room(100).conversion(60):
            raise QemuImgError("corrupt")


async def test_work_that_needs_no_room_is_not_refused() -> None:
    """A disk that takes next to nothing is made even where the operator's reserve is used up."""
    ledger = room(10, min_free=30)
    async with ledger.reserve(0):
        assert ledger.reserved == 0


# --- with somebody who evicts -------------------------------------------------------------------


class Cache:
    """A file system of 1000 bytes, most of it a cache that gives up ``gives`` at each request."""

    def __init__(
        self, available: int, *, cached: int = 0, gives: int = 0, policy: EvictionPolicy = BOUNDS
    ) -> None:
        self.available = available
        self.cached = cached
        self.gives = gives
        self.asked: list[Demand] = []
        self.ledger = Room(self._usage, cache_bytes=self._cache_bytes, policy=lambda: policy)
        self.ledger.evict_with(self._evict)

    async def _usage(self) -> SpaceUsage:
        return SpaceUsage(total=1000, available=self.available)

    async def _cache_bytes(self) -> int:
        return self.cached

    async def _evict(self, demand: Demand) -> None:
        self.asked.append(demand)
        if not self.gives:
            raise InsufficientSpaceError(required_bytes=demand.size, available_bytes=7)
        self.available += self.gives
        self.cached -= self.gives


async def test_what_fits_evicts_nothing() -> None:
    """Nobody loses a base for what there is room for, to the last byte."""
    cache = Cache(100)
    async with cache.ledger.reserve(60), cache.ledger.reserve(40):
        assert cache.ledger.reserved == 100
    assert cache.asked == []


@pytest.mark.parametrize("cached", [True, False])
async def test_what_does_not_fit_is_asked_for_once(
    cached: bool,  # noqa: FBT001 -- a row of the table
) -> None:
    """The pruner hears how much is to be written, and whether it is cache; then there is room."""
    cache = Cache(100, gives=60)
    async with cache.ledger.reserve(150, cached=cached) as reservation:
        assert (reservation.left, reservation.cached) == (150, cached)
    assert cache.asked == [Demand(DemandKind.ROOM, 150, cached)]


async def test_room_that_others_take_is_made_again() -> None:
    """What was evicted may be written to by others at once: a few times more is tried."""
    cache = Cache(0, gives=10)
    async with cache.ledger.reserve(10 * ATTEMPTS):
        assert len(cache.asked) == ATTEMPTS
    with pytest.raises(InsufficientSpaceError) as refused:
        async with cache.ledger.reserve(1000):
            pass
    assert len(cache.asked) == 2 * ATTEMPTS
    assert refused.value.available_bytes == 10 * 2 * ATTEMPTS
    assert cache.ledger.reserved == 0


async def test_a_pruner_that_finds_nothing_says_so_with_its_figures() -> None:
    """The refusal is the one of the plan: it knows what all of the cache would give."""
    cache = Cache(100)
    with pytest.raises(InsufficientSpaceError) as refused:
        async with cache.ledger.reserve(150):
            pass
    assert (refused.value.available_bytes, len(cache.asked)) == (7, 1)
    assert cache.ledger.reserved == 0


@pytest.mark.parametrize("gives", [0, 10])
async def test_a_watermark_is_tried_for_once_and_refuses_nobody(gives: int) -> None:
    """A download that crosses the high watermark has the pruner look, and comes in either way."""
    policy = replace(BOUNDS, high_watermark=50, low_watermark=40)
    cache = Cache(600, gives=gives, policy=policy)
    async with cache.ledger.reserve(300):
        assert cache.ledger.reserved == 300
    assert len(cache.asked) == 1


async def test_what_takes_no_room_asks_for_none() -> None:
    """A disk that takes next to nothing evicts nothing, whatever bound is broken."""
    policy = replace(BOUNDS, high_watermark=10, low_watermark=5, min_free=500, max_size=0)
    cache = Cache(0, cached=900, gives=100, policy=policy)
    for size in (0, -1):
        async with cache.ledger.reserve(size):
            assert cache.ledger.reserved == 0
    assert cache.asked == []


async def test_disks_take_no_part_of_the_size_of_the_cache() -> None:
    """What full copies have reserved leaves ``max_size`` to the images."""
    cache = Cache(1000, cached=100, policy=replace(BOUNDS, max_size=200))
    async with cache.ledger.reserve(500, cached=False):
        snapshot = await cache.ledger.snapshot()
        assert (snapshot.reserved, snapshot.cache_reserved) == (500, 0)
        async with cache.ledger.reserve(100):
            assert (await cache.ledger.snapshot()).cache_reserved == 100
            with pytest.raises(InsufficientSpaceError):
                async with cache.ledger.reserve(1):
                    pass
    assert len(cache.asked) == 1


async def test_what_is_written_while_the_cache_is_measured_counts() -> None:
    """Bytes that were written since the measuring are not in its figures: they stay set aside."""
    written: list[Reservation] = []

    async def usage() -> SpaceUsage:
        for reservation in written:
            reservation.spent(50)
        return SpaceUsage(total=1000, available=100)

    ledger = Room(usage, cache_bytes=no_cache, policy=lambda: BOUNDS)
    async with ledger.reserve(60) as reservation:
        written.append(reservation)
        assert (await ledger.snapshot()).reserved == 60
        assert ledger.reserved == 10


# --- a file system that is full after all -------------------------------------------------------


def failing(*errors: Exception) -> Callable[[], Awaitable[int]]:
    """Give work that fails with each error in turn, and then gives how often it was done."""
    left, done = list(errors), 0

    async def work() -> int:
        nonlocal done
        done += 1
        if left:
            raise left.pop(0)
        return done

    return work


FULL = DiskFullError(required_bytes=30, available_bytes=0)


async def test_work_that_finds_the_disk_full_is_done_again_after_an_eviction() -> None:
    """Other files may fill the disk in the middle: the cache gives way once."""
    cache = Cache(0, gives=30)
    assert await cache.ledger.retrying(failing(FULL)) == 2
    assert cache.asked == [Demand(DemandKind.FULL, 30)]


async def test_work_is_done_twice_at_most() -> None:
    """A disk that is full again is told, not fought for."""
    cache = Cache(0, gives=30)
    with pytest.raises(DiskFullError):
        await cache.ledger.retrying(failing(FULL, FULL))
    assert len(cache.asked) == 1


async def test_where_nothing_can_go_the_work_is_done_once() -> None:
    """Without anything to evict, the answer is the figures."""
    cache = Cache(0)
    work = failing(FULL)
    with pytest.raises(InsufficientSpaceError):
        await cache.ledger.retrying(work)
    assert await work() == 2
    with pytest.raises(DiskFullError):
        await room(0).retrying(failing(FULL))


@pytest.mark.parametrize(
    "error",
    [ValueError("broken"), InsufficientSpaceError(required_bytes=1, available_bytes=0)],
    ids=["failure", "refusal"],
)
async def test_other_failures_evict_nothing(error: Exception) -> None:
    """Only a write that found no room is done again; a refusal beforehand has had its eviction."""
    cache = Cache(0, gives=30)
    with pytest.raises(type(error)):
        await cache.ledger.retrying(failing(error))
    assert cache.asked == []


async def test_programs_that_find_the_disk_full_can_be_done_again() -> None:
    """What qemu-img and mkfs say of a full disk is what a write of our own says."""
    for error in (QemuImgError("full", no_space=True), MkfsError("full", no_space=True)):
        with pytest.raises(DiskFullError):
            async with room(100).conversion(60):
                raise error
