"""What a row of the corpus is, and how to bend an image."""

from __future__ import annotations

import enum
import functools
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fakes import images

ADMITTED: Final = "admitted"
"""What is expected of an image that is odd, and good."""


class Judge(enum.Enum):
    """Who finds the fault: nobody asks a later one once an earlier one has refused."""

    DESCRIPTION = "what Glance says of it, before any byte was asked for"
    BYTES = "its bytes, before any qemu-img"
    QEMU_IMG = "qemu-img, which the policy has let look at it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image that somebody uploads.

    ``expected`` is the reason for which it is refused (those of ``policy.admission``), or
    ``ADMITTED``; ``by`` is who finds it. ``build`` gives its bytes; ``metadata`` overrides what
    Glance says of it.
    """

    name: str
    build: Callable[[], bytes]
    disk_format: str
    expected: str
    by: Judge = Judge.BYTES
    container_format: str = "bare"
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """Give the name, which pytest shows."""
        return self.name


def patched(image: bytes, *patches: tuple[int, str, object]) -> bytes:
    """Give the image with fields overwritten: offset, ``struct`` format, value.

    An offset below 0 counts from the end.
    """
    bent = bytearray(image)
    for offset, layout, value in patches:
        at = offset if offset >= 0 else len(bent) + offset
        struct.pack_into(layout, bent, at, value)
    return bytes(bent)


@functools.cache
def content() -> bytes:
    """Give what is on the disk of images that qemu-img makes: data, then zeros."""
    return bytes(range(256)) * 4096 + bytes(1 << 20)


@functools.cache
def made(image_format: str, options: str = "") -> bytes:
    """Give an image as qemu-img makes it, of the disk ``content``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        return images.made_by_qemu(path, image_format, options, content()).read_bytes()
