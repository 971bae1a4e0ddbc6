"""What there is: the rows of the catalog, and what the files in our folders say of themselves."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends import qcow2
from cacheagent.backends.store.bases import read_manifest
from cacheagent.backends.store.files import BLOCK_UNIT
from cacheagent.errors import NotQcow2Error
from cacheagent.model import BaseId, DiskFormat, DiskState
from cacheagent.policy import inventory
from cacheagent.policy.boot import BOOT_FORMATS
from cacheagent.policy.drift import CatalogState, FilesState, FoundBase, FoundDisk
from cacheagent.policy.inventory import LeftoverKind
from cacheagent.policy.sizing import whole_sectors
from cacheagent.service.instances import Instances

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cacheagent.model import Disk, DiskKey
    from cacheagent.policy.inventory import Inventory
    from cacheagent.service.parts import Parts
    from cacheagent.service.use import Use

BaseName = tuple["BaseId", DiskFormat]

_log = structlog.get_logger(__name__)


class Survey:
    """Reads rows and files for the reconciliation: all of them, or those of one base or disk."""

    def __init__(self, parts: Parts, *, use: Use) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._layout = parts.store.layout
        self._use = use
        self._instances = Instances(parts)
        # Files that were said to be unreadable, so that each is said once.
        self._doubted: set[Path] = set()

    async def rows(self) -> CatalogState:
        """Read the catalog."""
        return CatalogState(
            bases=tuple(await self._catalog.bases()),
            images=tuple(await self._catalog.images()),
            disks=tuple(await self._catalog.disks()),
        )

    async def files(self, *, known: Collection[Disk] = ()) -> FilesState:
        """Read the folders, manifests, and headers of disks.

        A READY disk that is among the ``known`` is not read again: only that its file is there
        counts. All files are read one after another in one thread: a hop for each would cost
        several times as much.
        """
        # By no name here: what is read later need not lie beside it.
        found = await asyncio.to_thread(inventory.take, self._layout, await self._store.listing())
        unread = {(disk.key, disk.format) for disk in known if disk.state is DiskState.READY}
        return FilesState(
            inventory=found,
            bases=await self._store.run_long(self._bases, found.bases),
            disks=await self._store.run_long(self._disks, found.disks, unread),
            wanted_trash=await self._wanted_trash(found),
            unmounted=await self._is_unmounted(),
        )

    async def _is_unmounted(self) -> bool:
        try:
            return await self._instances.look()
        except OSError:
            return True

    async def base(self, base_id: BaseId, seen: Inventory) -> FilesState:
        """Look again at the files of one base; ``seen`` has what may be left over of it."""
        names = [(base_id, disk_format) for disk_format in DiskFormat]
        found = await self._store.run(self._bases, names)
        narrowed = replace(
            seen,
            bases=tuple((each.base_id, each.format) for each in found),
            disks=(),
            leftovers=tuple(each for each in seen.leftovers if each.base_id == base_id),
            unknown=(),
        )
        wanted = await self._wanted_trash(narrowed)
        return FilesState(inventory=narrowed, bases=found, wanted_trash=wanted)

    async def disk(self, key: DiskKey, seen: Inventory) -> FilesState:
        """Look again at the files of one disk; ``seen`` tells which instances there are."""
        there = [
            (key, disk_format)
            for disk_format in DiskFormat
            if await self._store.exists(self._layout.disk(key, disk_format))
        ]
        narrowed = replace(seen, bases=(), disks=tuple(there), leftovers=(), unknown=())
        disks = await self._store.run(self._disks, there, frozenset())
        unmounted = await self._is_unmounted()
        return FilesState(inventory=narrowed, disks=disks, unmounted=unmounted)

    # --- bases ---------------------------------------------------------------------------------

    def _bases(self, names: Iterable[BaseName]) -> tuple[FoundBase, ...]:
        found = (self._base(self._layout.base(*name), name) for name in names)
        return tuple(each for each in found if each is not None)

    def _base(self, path: Path, name: BaseName) -> FoundBase | None:
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._doubt(path, str(error))
            return FoundBase(base_id=name[0], format=name[1], doubtful=True)
        if not stat.S_ISREG(found.st_mode):
            return None
        manifest = read_manifest(self._layout, *name)
        return FoundBase(
            base_id=name[0],
            format=name[1],
            length=found.st_size,
            allocated=found.st_blocks * BLOCK_UNIT,
            manifest=None if manifest is None else manifest.base,
            images=() if manifest is None else manifest.images,
        )

    async def _wanted_trash(self, found: Inventory) -> tuple[FoundBase, ...]:
        """Give the bases in the trash that somebody uses, or of which nobody can tell."""
        wanted: list[FoundBase] = []
        for disk_format in DiskFormat:
            files = {
                each.base_id: each.path
                for each in found.leftovers
                if each.kind is LeftoverKind.TRASH
                and each.base_id is not None
                and each.format is disk_format
            }
            users = await self._use.outside(files) if files else {}
            names = [(base_id, disk_format) for base_id, by in users.items() if by]
            wanted += await self._store.run(self._trashed, names)
        return tuple(wanted)

    def _trashed(self, names: Sequence[BaseName]) -> list[FoundBase]:
        found = (self._base(self._layout.trashed(*name), name) for name in names)
        return [each for each in found if each is not None]

    # --- disks ---------------------------------------------------------------------------------

    def _disks(
        self,
        names: Iterable[tuple[DiskKey, DiskFormat]],
        unread: Collection[tuple[DiskKey, DiskFormat]],
    ) -> tuple[FoundDisk, ...]:
        found = (
            FoundDisk(key=name[0], format=name[1]) if name in unread else self._disk(*name)
            for name in names
        )
        return tuple(each for each in found if each is not None)

    def _disk(self, key: DiskKey, disk_format: DiskFormat) -> FoundDisk | None:
        """Look at a disk, which a guest may have written: at its header, never at its content."""
        path = self._layout.disk(key, disk_format)
        try:
            if disk_format is DiskFormat.RAW:
                size = path.lstat().st_size
                # A disk is whole sectors long, unless it is a kernel; else we did not make it.
                odd = size != whole_sectors(size) and key.name not in BOOT_FORMATS
                doubtful = size == 0 or odd
                return FoundDisk(key=key, format=disk_format, virtual_size=size, doubtful=doubtful)
            header = qcow2.read_header(path, follow_symlinks=False)
        except FileNotFoundError:
            # It went since it was listed.
            return None
        except (OSError, NotQcow2Error) as error:
            self._doubt(path, str(error))
            return FoundDisk(key=key, format=disk_format, doubtful=True)
        base = None
        if header.backing_file is not None:
            base = self._layout.base_of(_absolute(path, header.backing_file))
        return FoundDisk(
            key=key,
            format=disk_format,
            virtual_size=header.virtual_size,
            # As the rows do: ten thousand overlays name a few hundred bases.
            backing=None if base is None else BaseId(intern(base[0])),
            doubtful=header.external_data_file or (header.backing_file is not None) != bool(base),
        )

    def _doubt(self, path: Path, why: str) -> None:
        if path not in self._doubted:
            self._doubted.add(path)
            _log.warning("a file cannot be read", path=str(path), why=why)


def _absolute(overlay: Path, backing_file: str) -> Path:
    """Give the path that a backing file's name means; it may name nothing of ours."""
    # Not resolved: a name that leads to a base by a detour is left to the proof of use.
    return Path(os.path.normpath(overlay.parent / backing_file))
