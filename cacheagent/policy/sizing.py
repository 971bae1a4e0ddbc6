"""How large a disk becomes. Sizes are bytes."""

from __future__ import annotations

from cacheagent.errors import DiskTooSmallError

SECTOR = 512
"""A virtual size is a whole number of sectors (qcow2 specification, QEMU's block layer)."""


def whole_sectors(size: int) -> int:
    """Round up to what a disk can have."""
    return -(-size // SECTOR) * SECTOR


def disk_size(asked: int | None, *, virtual_size: int, min_disk: int) -> int:
    """Give the size of a disk made from a base of ``virtual_size``; None asks for just that.

    Raises:
        DiskTooSmallError: a guest would lose the end of the base, or the image's owner demands
            at least ``min_disk`` bytes.

    """
    base_size = whole_sectors(virtual_size)
    size = base_size if asked is None else whole_sectors(asked)
    required = max(base_size, min_disk)
    if size < required:
        raise DiskTooSmallError(required_bytes=required, requested_bytes=size)
    return size
