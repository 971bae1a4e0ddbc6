"""qcow2 files that are nothing but a header, as sound or as bent as a test wants."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_header(  # noqa: PLR0913 the fields of the header
    path: Path,
    *,
    version: int = 3,
    name: bytes = b"",
    offset: int = 104,
    length: int | None = None,
    bits: int = 16,
    features: int = 0,
    size: int = 5 << 20,
) -> Path:
    """Write a file that has nothing but the header, and the name right behind it."""
    length = len(name) if length is None else length
    offset = offset if name or length else 0
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, offset, length, bits, size)
    head = head.ljust(72, b"\0") + struct.pack(">Q", features)
    path.write_bytes(head.ljust(104, b"\0") + name)
    return path


def write_overlay(path: Path, backing: str | Path) -> Path:
    """Write the header of an overlay of ``backing``, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_header(path, name=os.fsencode(backing))
