"""The images that other tests use are what their names say."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.images import CONVERTED, ISO, real_images

DRIVERS = {"disk.raw": "raw", **{name: made[0] for name, made in CONVERTED.items()}}


def _qemu_img(*words: str) -> bytes:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True).stdout


@pytest.mark.parametrize("name", DRIVERS)
def test_each_image_is_of_its_format(name: str) -> None:
    """QEMU's tool sees the format, the virtual size and the common content."""
    images = real_images()
    path, format_ = str(images[name].path), DRIVERS[name]
    told = json.loads(_qemu_img("info", "-f", format_, "--output=json", path))
    assert told["virtual-size"] == images[name].virtual_size_bytes
    raw = str(images["disk.raw"].path)
    assert b"identical" in _qemu_img("compare", "-f", format_, "-F", "raw", path, raw)


def test_the_iso_is_bootable() -> None:
    """The ISO has the descriptors of a CD, and the mark of a disk that a BIOS boots from."""
    data = real_images()[ISO].path.read_bytes()
    assert data[510:512] == b"\x55\xaa"
    assert data[0x8001:0x8006] == b"CD001"
