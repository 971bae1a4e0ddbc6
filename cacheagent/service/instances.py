"""The folder of the instances: whether it is the one that we know, or a mount point left bare.

A mount point without its file system is a folder without a file. To take that for the loss of all
disks would let all their bases go. So a folder that is empty is believed only if it is the one
that disks were once seen in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cacheagent.service.parts import Parts

NOTE = "instances_folder"
"""Under this name the catalog remembers in which folder of which file system disks were seen."""


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

    async def look(self) -> bool:
        """Remember a folder that has something in it; tell whether an empty one is in doubt."""
        identity, is_empty = await self._store.instances_folder()
        known = await self._catalog.note(NOTE)
        if not is_empty and known != identity:
            await self._catalog.put_note(NOTE, identity)
        return is_empty and known != identity
