"""How the file of a disk comes about: cloned from a template, copied, or made blank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.backends import mkfs
from cacheagent.backends.store import Clone
from cacheagent.errors import HostUnavailableError, QemuImgError
from cacheagent.model import BaseState, DiskFormat, DiskMode
from cacheagent.policy.layout import unfinished
from cacheagent.policy.verification import has_right_length
from cacheagent.sync.singleflight import SingleFlight

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.store import Template
    from cacheagent.model import Base, Disk, DiskKey, DiskSpec, FileSystem
    from cacheagent.service.parts import Parts
    from cacheagent.service.room import Reservation


class BaseGoneError(Exception):
    """Somebody found the base damaged, or took it away, while a disk was made of it."""


class Making:
    """Makes the file of a disk: first what may take long, and then what must not be left half."""

    def __init__(self, parts: Parts) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._qemu = parts.qemu
        self._room = parts.room
        self._disk_room = parts.disk_room
        self._options = parts.config().overlay.options
        self._templates: SingleFlight[Path, None] = SingleFlight()

    async def prepare(
        self, key: DiskKey, spec: DiskSpec, size: int, base: Base | None
    ) -> Template | None:
        """Do what takes long for a disk of ``size`` bytes, and may be given up at any time.

        Gives the template that the disk is cloned from, None where it lies there already under
        its unfinished name.

        Raises:
            BaseGoneError: the base has gone, or is another one; nothing is left behind.
            InsufficientSpaceError: there is no room; nothing is left behind.
            InvalidRequestError: the file system asked for cannot be made.

        """
        try:
            if base is None:
                return await self._blank(key, spec, size)
            return await self._from(base, key, spec, size)
        except BaseException:
            await self._store.abandon_disk(key)
            raise

    async def _blank(self, key: DiskKey, spec: DiskSpec, size: int) -> Template | None:
        if spec.filesystem is not None:
            await self._formatted(key, spec.format, size, spec.filesystem, spec.label)
        elif spec.format is DiskFormat.QCOW2:
            return await self._template(None, size)
        else:
            await self._store.make_hole(await self._store.begin_disk(key, spec.format), size)
        return None

    async def _from(self, base: Base, key: DiskKey, spec: DiskSpec, size: int) -> Template | None:
        try:
            if spec.mode is DiskMode.OVERLAY:
                return await self._template(base, size)
            await self._full(key, spec.format, size, base)
        except (OSError, QemuImgError, HostUnavailableError) as error:
            # Without the file no sandbox begins that has to show it to the program.
            if await self._is_here(base):
                raise
            raise BaseGoneError from error
        if not await self._is_here(base):
            # What was open went on being read: the copy is one of a damaged base.
            raise BaseGoneError
        return None

    async def _is_here(self, base: Base) -> bool:
        row = await self._catalog.base(base.base_id)
        if row is None or row.state is not BaseState.READY or row.fetched_at != base.fetched_at:
            return False
        # Nobody has looked at the file since the catalog said that the base is READY.
        length = await self._store.base_length(base.base_id, base.format)
        return length is not None and has_right_length(base, length)

    async def finish(self, disk: Disk, template: Template | None, base: Base | None) -> None:
        """Let what ``prepare`` has given become the disk, durably: a matter of milliseconds.

        Raises:
            BaseGoneError: the base of an overlay, or the template, is not as it was; nothing is
                left behind.
            InsufficientSpaceError: there is no room; nothing is left behind.
            FileExistsError: somebody else's file has the name of the disk.

        """
        made = True
        try:
            if template is None:
                await self._store.finish_disk(disk.key, disk.format)
            else:
                made = await self._store.clone_disk(
                    Clone(template=template, key=disk.key, format=disk.format, base=base)
                )
        except BaseException:
            await self._store.abandon_disk(disk.key)
            raise
        if not made:
            # The two are looked at before anything is made.
            raise BaseGoneError

    async def _template(self, base: Base | None, size: int) -> Template:
        """Give the empty qcow2 file that every such disk begins as; qemu-img makes it once."""
        path = self._store.layout.template(base, DiskFormat.QCOW2, size, self._options)
        while (template := await self._store.template(path)) is None:
            # It lies with the bases, which may not be where the disks are.
            await self._templates.run(
                path, lambda: self._room.retrying(lambda: self._make_template(path, base, size))
            )
        return template

    async def _make_template(self, template: Path, base: Base | None, size: int) -> None:
        making = unfinished(template)
        await self._store.remove([making])
        async with self._room.conversion(0):
            if base is None:
                await self._qemu.create(making, DiskFormat.QCOW2, size=size, options=self._options)
            else:
                await self._qemu.create_overlay(
                    making,
                    base=self._store.layout.base(base.base_id, base.format),
                    base_format=base.format,
                    size=size,
                    options=self._options,
                )
        await self._store.finish_template(template)

    async def _full(self, key: DiskKey, disk_format: DiskFormat, size: int, base: Base) -> None:
        """Copy the base into the unfinished file."""
        source = self._store.layout.base(base.base_id, base.format)
        making = await self._store.begin_disk(key, disk_format)
        # What a compressed base takes says little of its copy.
        needed = base.allocated if base.format is DiskFormat.RAW else base.virtual_size
        async with self._disk_room.conversion(needed, cached=False) as room:
            if disk_format is DiskFormat.RAW and base.format is DiskFormat.RAW:
                await self._store.copy_base(source, making, size)
            else:
                whole = base.virtual_size
                await self._convert(source, base.format, making, disk_format, whole, room)
                if size > base.virtual_size:
                    await self._qemu.resize(making, disk_format, size)

    async def _formatted(
        self,
        key: DiskKey,
        disk_format: DiskFormat,
        size: int,
        filesystem: FileSystem,
        label: str | None,
    ) -> None:
        """Make a file system in a raw file, since its tools know no other format."""
        raw = await self._store.begin_disk(key, DiskFormat.RAW)
        await self._store.make_hole(raw, size)
        async with self._disk_room.conversion(0):
            await mkfs.make_filesystem(raw, filesystem, label, sandbox=self._qemu.sandbox)
        if disk_format is DiskFormat.QCOW2:
            making = await self._store.begin_disk(key, DiskFormat.QCOW2)
            written = await self._store.allocated(raw)
            async with self._disk_room.conversion(written, cached=False) as room:
                await self._convert(raw, DiskFormat.RAW, making, DiskFormat.QCOW2, size, room)
            await self._store.remove([raw])

    async def _convert(
        self,
        source: Path,
        source_format: DiskFormat,
        target: Path,
        target_format: DiskFormat,
        size: int,
        room: Reservation,
    ) -> None:
        await self._qemu.convert(
            source,
            source_format,
            target,
            target_format,
            max_bytes=size,
            on_progress=lambda fraction: room.still(size - int(size * fraction)),
            # Cloud images mostly are, and those that are not lose little by it.
            compressed=source_format is DiskFormat.QCOW2,
        )
