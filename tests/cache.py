"""Things that are costly to make and the same for every run: kept in ``.cache/`` of the clone."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CACHE_DIR = Path(__file__).resolve().parent.parent / ".cache"


def key_of(parts: Iterable[str | bytes | Path]) -> str:
    """Give a short key that changes with any part; a path stands for the file's content."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data.encode() if isinstance(data, str) else data
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder ``.cache/<kind>/<key>``, which ``build`` has filled once.

    It is built where it stays (a venv cannot be moved). A mark tells a whole folder from one
    whose making was interrupted, and a lock makes several test runs wait for one another.
    """
    folder = CACHE_DIR / kind / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole = folder / ".whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            whole.touch()
    return folder
