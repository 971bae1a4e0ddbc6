"""What of a file lies in the page cache."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


_PIECE = 4 << 20


def resident(path: Path) -> int:
    """Give the bytes of a file that lie in the page cache, as fincore(1) counts them."""
    words = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(words, capture_output=True, check=True).stdout or 0)


def forget(path: Path) -> None:
    """Have the kernel drop what it holds of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def remember(path: Path) -> None:
    """Have the kernel hold a file."""
    with path.open("rb", buffering=0) as file:
        while file.read(_PIECE):
            pass
