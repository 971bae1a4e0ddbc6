"""A base that has lost its manifest, and that no row knows, is proved by its digest once more.

Only a file that is the image as it was downloaded can be proved: its name is its digest. What a
conversion made has another digest, which nobody wrote down, so such a file is left alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends import qcow2
from cacheagent.backends.store import Manifest
from cacheagent.backends.store.leftovers import identities
from cacheagent.errors import DigestMismatchError, ImageUnacceptableError, NotQcow2Error
from cacheagent.model import Base, BaseState, DiskFormat
from cacheagent.policy.sizing import whole_sectors
from cacheagent.sync.throttle import Throttle
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.store.leftovers import Identity
    from cacheagent.model import BaseId
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.proof import Proven

_log = structlog.get_logger(__name__)


class Adoption:
    """Proves bases without a manifest, and takes those in that are what their name says."""

    def __init__(self, parts: Parts, *, bases: Bases) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._now = parts.now
        self._inspection_version = parts.inspection_version
        self._bases = bases
        # Files that are not what their name says; nobody reads them again until they change.
        self._disproved: dict[Path, Identity] = {}

    async def prove(self, base_id: BaseId, disk_format: DiskFormat) -> bool:
        """Read the file to its end, and take it in if it is the base; tell whether it was.

        It takes as long as the reading of all its bytes, without the lock of the base: a request
        for the image goes on meanwhile, and whatever it publishes counts.

        Raises: ``OSError`` where it cannot be read; ``CacheAgentError`` where it cannot be taken
        in.
        """
        path = self._store.layout.base(base_id, disk_format)
        before = await self._store.run(identities, [path])
        if not before or self._disproved.get(path) == before[path]:
            return False
        base = await self._read(base_id, disk_format, length=before[path][1])
        if base is None:
            self._disproved[path] = before[path]
            return False
        if self._bases.locks.held(base_id):
            return False
        async with self._bases.locks.hold(base_id):
            return await uninterrupted(self._take_in(base, path, before))

    async def _take_in(self, base: Base, path: Path, before: dict[Path, Identity]) -> bool:
        row = await self._catalog.base(base.base_id)
        if row is not None or await self._store.run(identities, [path]) != before:
            return False
        # Nobody knows which images it stood for; the next one of its content is linked to it.
        await self._store.write_manifest(Manifest(base=base, images=()))
        await self._catalog.adopt(bases=[base])
        _log.info("a base without a manifest was proved", base_id=base.base_id)
        return True

    async def _read(self, base_id: BaseId, disk_format: DiskFormat, length: int) -> Base | None:
        """Give the base that the file is; None where it is not what its name says."""
        now = self._now()
        base = Base(
            base_id=base_id,
            state=BaseState.READY,
            format=disk_format,
            source_format=disk_format,
            size=length,
            virtual_size=whole_sectors(length),
            allocated=await self._store.allocated(self._store.layout.base(base_id, disk_format)),
            inspection_version=self._inspection_version,
            fetched_at=now,
            last_used_at=now,
            verified_at=now,
        )
        try:
            seen = await self._bases.renewal.read(base, Throttle(None))
            return await self._judged(base, seen)
        except (DigestMismatchError, ImageUnacceptableError, NotQcow2Error) as error:
            _log.warning("a file is no base", base_id=base_id, format=disk_format, why=str(error))
            return None

    async def _judged(self, base: Base, seen: Proven) -> Base:
        """Judge the content as that of an image, and read what the header tells.

        Raises: ``ImageUnacceptableError``, ``NotQcow2Error``, ``HostUnavailableError``.
        """
        await self._bases.renewal.judge(base, seen)
        if base.format is DiskFormat.RAW:
            return base
        path = self._store.layout.base(base.base_id, base.format)
        header = await self._store.run(qcow2.read_header, path)
        return replace(base, virtual_size=whole_sectors(header.virtual_size))
