"""Bytes that are kept back for the moment in which a file system is full.

An eviction begins with a row in the catalog, and SQLite writes no row without room. So a file of a
megabyte is kept, and given up when nothing else will do. For threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from cacheagent.backends.store import files

if TYPE_CHECKING:
    from pathlib import Path

SPARE_BYTES = 1 << 20


def keep(path: Path) -> None:
    """See to it that the bytes are taken, if the file system has them."""
    with files.open_fd(path, os.O_RDWR | os.O_CREAT) as fd:
        if os.fstat(fd).st_blocks * files.BLOCK_UNIT >= SPARE_BYTES:
            return
        try:
            os.posix_fallocate(fd, 0, SPARE_BYTES)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP}:
                raise
            # Half of it would help nobody, and be missing elsewhere.
            os.ftruncate(fd, 0)


def spend(path: Path) -> None:
    """Give the bytes up."""
    with contextlib.suppress(FileNotFoundError), files.open_fd(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 0)
