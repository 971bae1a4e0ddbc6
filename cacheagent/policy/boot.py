"""Kernel and ramdisk of an AMI, which are files and no disks, beside the disk that they start.

An image of format ``ami`` is a file system without a boot loader. Its properties ``kernel_id`` and
``ramdisk_id`` name two more images of Glance, ``aki`` and ``ari``, for the hypervisor to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import DiskFormat, DiskMode, DiskName, DiskSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheagent.model import Base, CachedImage, Disk, GlanceImage

KERNEL: Final = DiskName("kernel")
RAMDISK: Final = DiskName("ramdisk")
BOOT_FORMATS: Final[Mapping[DiskName, str]] = {KERNEL: "aki", RAMDISK: "ari"}
"""The names of the two among the disks of an instance, and the ``disk_format`` of their images."""


def is_ami(image: GlanceImage) -> bool:
    """Tell whether a kernel and a ramdisk may belong to the image."""
    return image.disk_format == "ami"


def boot_disks(name: DiskName, image: GlanceImage) -> dict[DiskName, DiskSpec]:
    """Give the disks that a disk called ``name`` needs beside it when it is made of this image.

    The two themselves need none, whatever they are made of: so none waits for another of them.
    """
    if not is_ami(image) or name in BOOT_FORMATS:
        return {}
    wanted = {KERNEL: image.kernel_id, RAMDISK: image.ramdisk_id}
    return {
        name: DiskSpec(image_id=image_id, size=None, format=DiskFormat.RAW, mode=DiskMode.FULL)
        for name, image_id in wanted.items()
        if image_id is not None
    }


def admit_boot_image(name: DiskName, image: GlanceImage) -> None:
    """Judge what an AMI says is its kernel, or its ramdisk.

    Raises: ImageUnacceptableError with ``boot-image``.
    """
    if image.disk_format != BOOT_FORMATS[name]:
        raise ImageUnacceptableError(
            "boot-image",
            f"image {image.image_id} is named as {name}, and is {image.disk_format}"
            f" and not {BOOT_FORMATS[name]}",
        )


def may_boot(disk: Disk, base: Base | None, cached: CachedImage | None) -> bool:
    """Tell whether a kernel among the disks of its instance may be that of this one.

    ``cached`` is its image, which may have gone, or stand for another base by now. Then there is
    only what the base was: an AMI is raw data. Of a full copy even that may have gone.
    """
    if disk.image_id is None or disk.key.name in BOOT_FORMATS:
        return False
    if cached is not None and cached.base_id == disk.base_id:
        return is_ami(cached.image)
    return base is None or base.source_format == DiskFormat.RAW.value


def keeps_length(name: DiskName, spec: DiskSpec, image: GlanceImage) -> bool:
    """Tell whether the disk is as long as its image to the byte, and not whole sectors.

    A kernel with zeros behind it may have another signature, and a ramdisk another end.
    """
    plain = (spec.size, spec.format, spec.mode) == (None, DiskFormat.RAW, DiskMode.FULL)
    return plain and BOOT_FORMATS.get(name) == image.disk_format
