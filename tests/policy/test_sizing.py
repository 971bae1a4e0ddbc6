"""How large a disk becomes."""

from __future__ import annotations

import pytest

from cacheagent.errors import DiskTooSmallError
from cacheagent.policy.sizing import disk_size, whole_sectors

GIB = 1 << 30


def test_size_left_out_is_the_virtual_size() -> None:
    """Whoever names no size gets a disk as large as the image's own."""
    assert disk_size(None, virtual_size=3 * GIB, min_disk=0) == 3 * GIB


def test_larger_size_is_granted() -> None:
    """A disk may be larger than its image."""
    assert disk_size(10 * GIB, virtual_size=3 * GIB, min_disk=5 * GIB) == 10 * GIB


@pytest.mark.parametrize(
    ("asked", "virtual_size", "min_disk", "required"),
    [
        (2 * GIB, 3 * GIB, 0, 3 * GIB),
        (4 * GIB, 3 * GIB, 5 * GIB, 5 * GIB),
        (None, 3 * GIB, 5 * GIB, 5 * GIB),
    ],
)
def test_too_small_size_is_refused_with_the_figures(
    asked: int | None, virtual_size: int, min_disk: int, required: int
) -> None:
    """Neither the end of the image nor its owner's minimum is cut off, and the error says so."""
    with pytest.raises(DiskTooSmallError) as refused:
        disk_size(asked, virtual_size=virtual_size, min_disk=min_disk)
    assert refused.value.required_bytes == required
    assert refused.value.requested_bytes == (asked or virtual_size)


def test_sizes_are_whole_sectors() -> None:
    """An odd size is rounded up, so that no byte that was asked for is missing."""
    assert whole_sectors(1) == 512
    assert whole_sectors(1024) == 1024
    assert disk_size(1025, virtual_size=1, min_disk=0) == 1536
