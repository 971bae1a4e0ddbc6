"""The images of the test: so small that a step takes milliseconds, some of equal content."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.model import ImageId
from tests.fakes.images import made_by_qemu
from tests.fakes.values import image_id

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import BaseId

KIB = 1 << 10

RAW = (64, 256, 512, 1024)
QCOW2 = (192, 704)
"""Sizes of the images in KiB. Those in qcow2 are converted when they come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image: the bytes that Glance has, and the disk that they mean."""

    name: str
    image_id: ImageId
    disk_format: str
    data: bytes
    content: bytes

    def __repr__(self) -> str:
        return self.name

    @property
    def base_id(self) -> BaseId:
        """What its base has to be called."""
        return f"sha512-{hashlib.sha512(self.data).hexdigest()}"  # type: ignore[return-value]


def make_images(folder: Path) -> tuple[Image, ...]:
    """Make the images: raw ones, one with a hole, converted ones, and two twins."""
    plain = [_image(f"raw{size}", "raw", data := _noise(size), data) for size in RAW]
    sparse = bytes(256 * KIB) + _noise(128) + bytes(384 * KIB)
    twins = [_image(f"{image.name}-twin", "raw", image.data, image.data) for image in plain[1:3]]
    converted = []
    for size in QCOW2:
        content = _noise(size)
        made = made_by_qemu(folder / f"{size}.qcow2", "qcow2", "", content)
        converted.append(_image(f"qcow{size}", "qcow2", made.read_bytes(), content))
    return (*plain, _image("sparse", "raw", sparse, sparse), *twins, *converted)


def _image(name: str, disk_format: str, data: bytes, content: bytes) -> Image:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return Image(
        name=name,
        image_id=image_id(number),
        disk_format=disk_format,
        data=data,
        content=content,
    )


def _noise(kib: int) -> bytes:
    """Give bytes that are the same in every run, and that compress to nothing less."""
    return random.Random(kib).randbytes(kib * KIB)  # noqa: S311 -- content, no secret
