"""Which disk a kernel of its instance may belong to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheagent.model import CachedImage, DiskKey
from cacheagent.policy.boot import KERNEL, may_boot
from tests.fakes.values import NOW, base, base_id, disk, disk_key, glance_image

RAW = replace(base(1), source_format="raw")
QCOW2 = base(1)
DISK = disk(disk_key(1), 1)


def cached(disk_format: str, base_number: int = 1) -> CachedImage:
    """Give the image of the disk as it is known now."""
    image = replace(glance_image(1), disk_format=disk_format)
    return CachedImage(image=image, base_id=base_id(base_number), requested_at=NOW)


@pytest.mark.parametrize(("disk_format", "it_may"), [("ami", True), ("raw", False)])
def test_its_image_tells(disk_format: str, it_may: bool) -> None:  # noqa: FBT001 -- of a table
    """Of an image that is known, none but an AMI has a kernel."""
    assert may_boot(DISK, RAW, cached(disk_format)) is it_may
    assert may_boot(DISK, None, cached(disk_format)) is it_may


@pytest.mark.parametrize("known", [None, cached("raw", base_number=2)])
def test_without_its_image_the_base_tells(known: CachedImage | None) -> None:
    """Where the image has gone, or is another one by now, raw data may have been an AMI."""
    assert may_boot(DISK, RAW, known)
    assert may_boot(DISK, None, known)
    assert not may_boot(DISK, QCOW2, known)


def test_a_kernel_has_none_and_nor_has_a_blank_disk() -> None:
    """A kernel is no disk that anything boots from, whatever it is made of."""
    kernel = replace(DISK, key=DiskKey(instance_id=DISK.key.instance_id, name=KERNEL))
    assert not may_boot(kernel, RAW, cached("ami"))
    assert not may_boot(disk(disk_key(1), None), None, None)
