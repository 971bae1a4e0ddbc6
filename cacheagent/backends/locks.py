"""The kernel's view of who has a file open: the locks that QEMU holds on it.

QEMU locks single bytes of every file of a chain that it has open, the bases included: those from
100 on stand for what it does with the file, those from 200 on for what it does not let others do
(QEMU, ``block/file-posix.c``). They are open file description locks, which the kernel shows to
anybody who may read the file (``fcntl(2)``). A lock proves use. No lock proves nothing: libvirt
may tell QEMU not to lock.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FIRST_BYTE = 100
_LENGTH = 200
_FLOCK = struct.Struct("@hhqqi0q")
"""``struct flock``: type, whence, start, length, process, and the padding of the compiler."""


def in_use(path: Path) -> bool:
    """Tell whether some program holds QEMU's locks on the file. For threads; takes microseconds.

    Raises: ``OSError`` where that cannot be told.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Would a write lock over all of QEMU's bytes be granted? It is asked for, never taken, so
        # a descriptor that only reads will do. The process must be 0 in the question.
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _LENGTH, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(fd)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
