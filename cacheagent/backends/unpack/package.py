"""An OVA, read where it lies: its files found, its descriptor and manifest held against them."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from cacheagent.backends.unpack.streams import BLOCK_SIZE
from cacheagent.errors import ImageUnacceptableError
from cacheagent.policy import archive, ovf
from cacheagent.policy.archive import BLOCK, Member, padded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.policy.archive import Header
    from cacheagent.policy.ovf import DiskReference


class Package:
    """The archive behind a descriptor of a file; nothing of it is remembered but where things lie.

    Raises: ImageUnacceptableError with ``archive``, ``ovf`` or ``manifest``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._members = self._walk(os.fstat(fd).st_size)
        descriptor = self._only(".ovf", "descriptor")
        text = self._read(descriptor, ovf.LONGEST_DESCRIPTOR)
        self.reference: DiskReference = ovf.read_descriptor(text)
        self.disk = self._disk()
        self._expected = self._manifest(descriptor, text)

    def blocks(self) -> Iterator[bytes]:
        """Give the bytes of the disk, and hold them against the manifest at their end."""
        algorithm, digits = self._expected or ("", "")
        hasher = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
        position, end = self.disk.offset, self.disk.offset + self.disk.size
        while position < end:
            block = _exactly(self._fd, min(BLOCK_SIZE, end - position), position)
            position += len(block)
            if hasher:
                hasher.update(block)
            yield block
        if hasher and hasher.hexdigest() != digits:
            raise _differs(self.disk)

    def _walk(self, length: int) -> dict[str, Member]:
        members: dict[str, Member] = {}
        position = 0
        while position + BLOCK <= length:
            member = self._member(position)
            if member is None:
                self._check_end(position, length)
                return members
            position = member.offset + padded(member.size)
            if position > length:
                raise archive.refused(f"{member.name!r} ends beyond its end")
            if member.name in members or len(members) == archive.MOST_MEMBERS:
                raise archive.refused(f"{member.name!r} is there twice, or one too many")
            members[member.name] = member
        raise archive.refused("it has no end")

    def _member(self, position: int) -> Member | None:
        """Find the file whose header is there, or the extended one before it; None at the end."""
        header, size = self._header(position), None
        if header is not None and header.extends:
            size = archive.extended_size(_exactly(self._fd, header.size, position + BLOCK))
            position += BLOCK + padded(header.size)
            header = self._header(position)
            # As many as fit into an image, and no file, would cost hours.
            if header is None or header.extends:
                raise archive.refused("an extended header has no file")
        if header is None:
            return None
        size = header.size if size is None else size
        return Member(name=header.name, offset=position + BLOCK, size=size)

    def _header(self, position: int) -> Header | None:
        return archive.read_header(_exactly(self._fd, BLOCK, position))

    def _check_end(self, position: int, length: int) -> None:
        # What hides behind the end is read by no tool, and by a person who looks for it only.
        if length - position > archive.LONGEST_PADDING:
            raise archive.refused("it goes on behind its end")
        if any(_exactly(self._fd, length - position, position)):
            raise archive.refused("something is hidden behind its end")

    def _only(self, ending: str, what: str) -> Member:
        found = [each for name, each in self._members.items() if name.lower().endswith(ending)]
        if len(found) != 1:
            raise archive.refused(f"it has {len(found)} files that are a {what}")
        return found[0]

    def _read(self, member: Member, most: int) -> bytes:
        if member.size > most:
            raise archive.refused(f"{member.name!r} is longer than {most} bytes")
        return _exactly(self._fd, member.size, member.offset)

    def _disk(self) -> Member:
        member = self._members.get(self.reference.name)
        if member is None:
            raise ovf.refused(f"its disk {self.reference.name[:64]!r} is not in the archive")
        if self.reference.size not in {None, member.size}:
            raise ovf.refused(f"its disk is {member.size} bytes long, not {self.reference.size}")
        return member

    def _manifest(self, descriptor: Member, text: bytes) -> tuple[str, str] | None:
        """Check the digest of the descriptor, and give what that of the disk has to be."""
        if not any(name.lower().endswith(".mf") for name in self._members):
            return None
        stated = ovf.read_manifest(self._read(self._only(".mf", "manifest"), ovf.LONGEST_MANIFEST))
        for member in (descriptor, self.disk):
            if member.name not in stated:
                raise ImageUnacceptableError("manifest", f"it says nothing of {member.name!r}")
        algorithm, digits = stated[descriptor.name]
        if hashlib.new(algorithm, text, usedforsecurity=False).hexdigest() != digits:
            raise _differs(descriptor)
        return stated[self.disk.name]


def _exactly(fd: int, count: int, position: int) -> bytes:
    """Read so many bytes; the walk has seen that they are there, and nobody else writes them."""
    data = b""
    while len(data) < count:
        piece = os.pread(fd, count - len(data), position + len(data))
        if not piece:
            raise archive.refused("it ends too early")
        data += piece
    return data


def _differs(member: Member) -> ImageUnacceptableError:
    return ImageUnacceptableError(
        "manifest", f"{member.name!r} is not what the manifest of the archive says"
    )
