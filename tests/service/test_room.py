"""Room is set aside before anything is written."""

from __future__ import annotations

import pytest

from cacheagent.errors import InsufficientSpaceError, QemuImgError
from cacheagent.model import SpaceUsage
from cacheagent.policy.eviction import EvictionPolicy
from cacheagent.service.room import Room


def room(available: int, min_free: int = 0) -> Room:
    """Give the ledger of a file system with so many bytes left."""

    async def usage() -> SpaceUsage:
        return SpaceUsage(total=1000, available=available)

    async def cache_bytes() -> int:
        return 0

    policy = EvictionPolicy(
        max_size=None,
        high_watermark=100,
        low_watermark=100,
        min_free=min_free,
        min_keep=0,
        min_age=0,
        max_idle=0,
    )
    return Room(usage, cache_bytes=cache_bytes, policy=lambda: policy)


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
