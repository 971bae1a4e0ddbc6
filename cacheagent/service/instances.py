"""The folder of the instances: which disks are in it, and whether it is a mount point left bare.

A mount point without its file system is a folder without a file. To take that for the loss of all
disks would let all their bases go. So a folder that is empty is believed only if it is the one
that disks were once seen in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import DiskConflictError
from cacheagent.service.intent import facts

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Disk
    from cacheagent.service.parts import Parts

NOTE = "instances_folder"
"""Under this name the catalog remembers in which folder of which file system disks were seen."""

_log = structlog.get_logger(__name__)


class Instances:
    """Looks at the folder, and remembers which it is."""

    def __init__(self, parts: Parts) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._remembered = False

    async def remember(self) -> None:
        """Remember which folder it is, while the first disk of this run lies in it."""
        if not self._remembered:
            await self.look()
            self._remembered = True

    @property
    def remembered(self) -> bool:
        """Whether a disk of this run has lain there."""
        return self._remembered

    async def look(self) -> bool:
        """Remember a folder that has something in it; tell whether an empty one is in doubt."""
        identity, is_empty = await self._store.instances_folder()
        known = await self._catalog.note(NOTE)
        if not is_empty and known != identity:
            await self._catalog.put_note(NOTE, identity)
        return is_empty and known != identity

    async def has(self, disk: Disk) -> bool:
        """Tell whether the file of a disk is there.

        Raises:
            DiskConflictError: it is not, and nobody can tell whether it is lost.

        """
        path = self._path(disk)
        if await self._store.exists(path):
            return True
        if await self.look():
            raise DiskConflictError(_bare(path), facts(disk))
        _log.warning("a disk has gone from its folder", path=str(path))
        return False

    async def has_lost(self, disk: Disk, *, seen: bool) -> bool:
        """Tell whether the file of a disk is lost beyond doubt; ``seen``: it was watched going."""
        path = self._path(disk)
        try:
            if await self._store.exists(path):
                return False
            why = _bare(path) if not seen and await self.look() else None
        except OSError as error:
            why = str(error)
        if why is not None:
            _log.warning("nobody can tell whether a disk is there", path=str(path), why=why)
            return False
        _log.warning("a disk has gone from its folder", path=str(path))
        return True

    def _path(self, disk: Disk) -> Path:
        return self._store.layout.disk(disk.key, disk.format)


def _bare(path: Path) -> str:
    # That is how a mount point looks without its file system.
    return f"{path.parent.parent} is empty; is it mounted?"
