"""The disk of an image: the image itself, or what is taken out of the container around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.backends.inspect import Inspection
from cacheagent.backends.unpack import BLOCK_SIZE, Unpacking, read_head
from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import IngestPhase
from cacheagent.policy import admission, containers, ovf
from cacheagent.policy.admission import Found
from cacheagent.policy.containers import Packing
from cacheagent.policy.ovf import DiskReference
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from cacheagent.model import GlanceImage
    from cacheagent.policy.admission import ImageRules, SourceFormat
    from cacheagent.service.meter import Meter
    from cacheagent.service.parts import Parts

STEP = 64 << 20
"""Bytes that are set aside at once for a disk whose length nobody knows yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """The file that the disk lies in, what its bytes are, and how it lay in the image."""

    path: Path
    found: Found
    how: Packing
    reference: DiskReference | None = None


class Unpack:
    """Takes disks out of their images."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._room = parts.room

    async def disk(
        self, image: GlanceImage, found: Found, meter: Meter, rules: ImageRules
    ) -> Unpacked:
        """Give the disk of an image whose bytes have come, and are ``found`` to be that.

        Raises:
            ImageUnacceptableError: it cannot be taken apart, or gives more than is allowed.
            InsufficientSpaceError: there is no room for what it gives.

        """
        part = self._store.layout.part(image.image_id)
        how = containers.packing(image, await self._store.run(read_head, part))
        if how is Packing.PLAIN:
            return Unpacked(path=part, found=found, how=how)
        path = self._store.layout.unpacked(image.image_id)
        await self._store.remove([path])
        try:
            return await self._take_out(part, path, how, meter, rules)
        except BaseException:
            await uninterrupted(self._store.remove([path]))
            raise

    async def drop(self, image: GlanceImage) -> None:
        """Remove what was taken out of an image; nothing there is fine."""
        await self._store.remove([self._store.layout.unpacked(image.image_id)])

    async def _take_out(
        self, part: Path, path: Path, how: Packing, meter: Meter, rules: ImageRules
    ) -> Unpacked:
        inspection = Inspection()
        unpacking = Unpacking(part, path, how, inspection.feed)
        try:
            await self._store.run_long(unpacking.open)
            length = await self._fill(unpacking, meter, rules)
        finally:
            await uninterrupted(self._store.run_long(unpacking.close))
        if not length:
            raise ImageUnacceptableError("empty", "there is nothing in the container of the image")
        found = await self._store.run_long(inspection.finish)
        return Unpacked(path=path, found=found, how=how, reference=unpacking.reference)

    async def _fill(self, unpacking: Unpacking, meter: Meter, rules: ImageRules) -> int:
        """Write all of the disk; give its length."""
        size = unpacking.size
        _check_length(size or 0, rules)
        meter.enter(IngestPhase.CONVERTING, unpacking.source_size)
        length, ended = 0, False
        while not ended:
            # What was written counts as used, so that the room of a step is free after it.
            async with self._room.reserve(STEP if size is None else size - length) as room:
                while not ended:
                    count = await self._store.run_long(unpacking.step)
                    ended, length = count is None, length + (count or 0)
                    _check_length(length, rules)
                    room.spent(count or 0)
                    meter.reach(unpacking.position)
                    if room.left < BLOCK_SIZE:
                        break
        return length


def admitted(image: GlanceImage, unpacked: Unpacked, rules: ImageRules) -> SourceFormat:
    """Judge the disk by its bytes, and by what the archive that it lay in says of it.

    Raises: ImageUnacceptableError, as ``admission.admit_content``, or with ``ovf``.
    """
    source_format = admission.admit_content(image, unpacked.found, rules)
    reference = unpacked.reference
    if reference is not None and not reference.agrees_with(unpacked.found.virtual_size):
        raise ovf.refused(
            f"it says that the disk has {reference.capacity * reference.unit} bytes,"
            f" and it has {unpacked.found.virtual_size}"
        )
    return source_format


def _check_length(length: int, rules: ImageRules) -> None:
    if length > rules.max_size:
        raise ImageUnacceptableError(
            "too-large", f"the disk in the image is longer than {rules.max_size} bytes"
        )
