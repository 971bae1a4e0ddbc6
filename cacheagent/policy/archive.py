"""The tar archive of an OVA, header by header: far less than tar can say, and no more.

DSP0243 (OVF 1.1 and later, section 5.3) wants the USTAR format of POSIX. Files of an archive are
found by their name in it and read where they lie; no name becomes a path. So what is refused here
is what would make one reader see other files than another, and what could cost without bound.
Fields are those of POSIX.1-2017 ``pax``, "ustar Interchange Format".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cacheagent.errors import ImageUnacceptableError

BLOCK: Final = 512
MOST_MEMBERS: Final = 64
"""Files of an archive; an OVA has one for its descriptor, one for each disk, and few more."""

LONGEST_EXTENSION: Final = 64 << 10
"""Bytes of one extended header of pax."""

LONGEST_PADDING: Final = 1 << 20
"""Bytes of zeros behind the last file; tar fills up to 10 KiB."""

_REGULAR = frozenset({b"0", b"\0"})
_EXTENDED = b"x"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
}
_NAME = re.compile(r"(?:\./)?(?P<name>[^/\0\\]{1,255})")
_OCTAL = re.compile(rb"[ ]*(?P<digits>[0-7]+)[ \0]*")
_CHECKSUM = slice(148, 156)
_BINARY = 0x80  # GNU: what follows is no text but a number, for files over 8 GiB
# What tells nothing of where the bytes lie, nor of how they are called. A size is taken as it is
# meant: for files over 8 GiB, which the octal field cannot state.
_HARMLESS = frozenset({"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"})
_SIZE = "size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What one header says: the name of a file and its length, or an extension of the next one."""

    name: str
    size: int
    extends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of the archive, and where its bytes lie in it."""

    name: str
    offset: int
    size: int


def padded(size: int) -> int:
    """Give the length of the blocks that so many bytes lie in."""
    return -(-size // BLOCK) * BLOCK


def read_header(block: bytes) -> Header | None:
    """Take a header of ``BLOCK`` bytes; None for one of zeros, which ends the archive.

    Raises: ImageUnacceptableError with ``archive``.
    """
    if not any(block):
        return None
    if len(block) != BLOCK or block[257:262] != b"ustar":
        raise refused("it has no header where one has to be")
    if _number(block[_CHECKSUM]) != sum(block[:148]) + sum(block[156:]) + 8 * 0x20:
        raise refused("a header has another checksum")
    kind = block[156:157]
    if kind not in {*_REGULAR, _EXTENDED}:
        raise refused(f"it holds {_KINDS.get(kind, 'something that is no plain file')}")
    extends = kind == _EXTENDED
    size = _number(block[124:136])
    if extends and size > LONGEST_EXTENSION:
        raise refused("an extended header is too long")
    return Header(name="" if extends else _name(block), size=size, extends=extends)


def extended_size(records: bytes) -> int | None:
    """Give the size that an extended header states for the file after it; None without one.

    Raises: ImageUnacceptableError with ``archive``, where it says anything that matters.
    """
    size = None
    while records.strip(b"\0"):
        length, _, _ = records.partition(b" ")
        if not re.fullmatch(rb"[1-9][0-9]{0,5}", length) or int(length) > len(records):
            raise refused("an extended header cannot be read")
        record, records = records[len(length) + 1 : int(length)], records[int(length) :]
        key, _, value = record.partition(b"=")
        if key == _SIZE.encode():
            size = _decimal(value)
        elif key.decode("ascii", "replace") not in _HARMLESS:
            raise refused(f"an extended header says something of {key[:32]!r}")
    return size


def refused(message: str) -> ImageUnacceptableError:
    """Give the refusal of an archive."""
    return ImageUnacceptableError("archive", f"the archive is refused: {message}")


def _name(block: bytes) -> str:
    # POSIX has a prefix there; in GNU's old format the field holds times.
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    raw = block[:100].partition(b"\0")[0]
    try:
        name = (prefix + b"/" + raw if prefix else raw).decode()
    except UnicodeDecodeError:
        raise refused("a name is not in UTF-8") from None
    match = _NAME.fullmatch(name)
    if match is None or match["name"] in {".", ".."}:
        raise refused(f"the name {name[:64]!r} is more than that of a file beside the others")
    return match["name"]


def _number(field: bytes) -> int:
    if field[0] == _BINARY:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise refused("a number in a header cannot be read")
    return int(match["digits"], 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}\n", value):
        raise refused("an extended header states no size")
    return int(value)
