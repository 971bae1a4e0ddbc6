"""The header of a qcow2 file, read without QEMU and without a look at the content.

Layout as in QEMU's ``docs/interop/qcow2.txt``; all numbers are big-endian. What is refused here
is what QEMU itself would not open, so that no file which QEMU takes as an overlay escapes.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.errors import NotQcow2Error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = b"QFI\xfb"
"""The first bytes of every qcow2 file."""

_VERSION_2 = struct.Struct(">4sIQIIQ")
"""Magic, version, offset and length of the backing file's name, cluster bits, virtual size."""
_HEADER_2_LENGTH = 72
_FEATURES = struct.Struct(">Q")
_CLUSTER_BITS = range(9, 22)
_LONGEST_NAME = 1023
_EXTERNAL_DATA_FILE = 1 << 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """What a qcow2 file says of itself.

    ``virtual_size`` is bytes. ``backing_file`` is the name as it stands there: it may be
    relative to the folder of the file, or begin with a protocol (``json:``); a byte that is not
    UTF-8 is kept as a lone surrogate. ``incompatible_features`` is the bit field of version 3,
    0 in version 2.
    """

    version: int
    virtual_size: int
    cluster_bits: int
    backing_file: str | None
    incompatible_features: int

    @property
    def external_data_file(self) -> bool:
        """Whether the data lies in another file."""
        return bool(self.incompatible_features & _EXTERNAL_DATA_FILE)


def read_header(path: Path, *, follow_symlinks: bool = True) -> Qcow2Header:
    """Read the header of the file. For threads: a device that hangs keeps it waiting.

    Raises: ``NotQcow2Error`` for anything but a regular file with a sound header;
    ``OSError`` where the file cannot be read, or is a symbolic link that is not to be followed.
    """
    with opened(path, follow_symlinks=follow_symlinks) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotQcow2Error(f"{path} is not a regular file")
        try:
            return parse(fd)
        except ValueError as error:
            raise NotQcow2Error(f"{path} {error}") from None


def is_empty(folder: Path) -> bool:
    """Tell whether nothing lies in the folder; one that cannot be read is not known to be."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


@contextmanager
def opened(path: str | Path, *, follow_symlinks: bool = True) -> Iterator[int]:
    """Open a file to read it, and give its descriptor. Nobody waits for a named pipe.

    Raises: ``NotQcow2Error`` for a socket or a device without a driver; ``OSError``.
    """
    # O_NONBLOCK: to open a named pipe would wait for somebody to write into it.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags if follow_symlinks else flags | os.O_NOFOLLOW)
    except OSError as error:
        # open(2): a socket cannot be opened, nor a device that has no driver.
        if error.errno in {errno.ENXIO, errno.ENODEV}:
            raise NotQcow2Error(f"{path} is not a regular file") from None
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def parse(fd: int) -> Qcow2Header:
    """Read the header at the beginning of an open file.

    Raises: ``ValueError``, with the end of a sentence, where there is no sound one; ``OSError``.
    """
    head = os.pread(fd, _HEADER_2_LENGTH + _FEATURES.size, 0)
    if not head.startswith(MAGIC):
        raise ValueError("is not qcow2")
    if len(head) < _HEADER_2_LENGTH:
        raise ValueError("ends within its qcow2 header")
    _, version, name_offset, name_length, cluster_bits, virtual_size = _VERSION_2.unpack_from(head)
    if cluster_bits not in _CLUSTER_BITS:
        raise ValueError(f"has qcow2 clusters of 2^{cluster_bits} bytes")
    return Qcow2Header(
        version=version,
        virtual_size=virtual_size,
        cluster_bits=cluster_bits,
        backing_file=_read_name(fd, name_offset, name_length, 1 << cluster_bits),
        incompatible_features=_features(version, head),
    )


def _features(version: int, head: bytes) -> int:
    if version == 2:  # noqa: PLR2004 the versions are 2 and 3, and have no other names
        return 0
    if version != 3:  # noqa: PLR2004 see above
        raise ValueError(f"is qcow2 of version {version}")
    if len(head) < _HEADER_2_LENGTH + _FEATURES.size:
        raise ValueError("ends within its qcow2 header")
    (features,) = _FEATURES.unpack_from(head, _HEADER_2_LENGTH)
    return int(features)


def _read_name(fd: int, offset: int, length: int, cluster_size: int) -> str | None:
    if offset == 0:
        return None
    if offset > cluster_size or length > min(_LONGEST_NAME, cluster_size - offset):
        raise ValueError("has a backing file's name outside of its qcow2 header")
    name = os.pread(fd, length, offset)
    if len(name) < length:
        raise ValueError("ends within the name of its backing file")
    # QEMU takes the name as a C string.
    return os.fsdecode(name.partition(b"\0")[0])
