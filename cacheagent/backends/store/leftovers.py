"""Files that nobody seems to need: known again by what they are, and removed if they still are.

Everything here blocks, and is meant for the store's own threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Identity = tuple[int, int, int]
"""What tells a file from another of its name, and from itself after a write: inode, size, mtime."""


def identities(paths: Iterable[Path]) -> dict[Path, Identity]:
    """Tell what the files are now; one that is not there, or cannot be seen, is left out."""
    found = {path: _identity(path) for path in paths}
    return {path: identity for path, identity in found.items() if identity is not None}


def remove_same(known: Mapping[Path, Identity]) -> tuple[Path, ...]:
    """Remove the files that are still what they were, and give those."""
    same = tuple(path for path, identity in known.items() if _identity(path) == identity)
    for path in same:
        path.unlink(missing_ok=True)
    return same


def _identity(path: Path) -> Identity | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
