"""Who uses a base: asked when needed, of every source, and never remembered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cacheagent.backends import locks, qcow2
from cacheagent.model import User, UserKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheagent.model import Base
    from cacheagent.service.parts import Parts


class Use:
    """Proves use; whatever cannot be read counts as a user, so that a doubt keeps the base."""

    def __init__(self, parts: Parts) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._instances_dir = parts.store.layout.instances_dir
        self._scan_dirs = parts.config().storage.scan_dirs

    async def recorded(self, base: Base) -> tuple[User, ...]:
        """Give the users that the catalog knows: disks and pins."""
        disks = await self._catalog.disks_of_base(base.base_id)
        pins = await self._catalog.pins()
        images = await self._catalog.images_of(base.base_id)
        return (
            *(User(kind=UserKind.DISK, key=disk.key) for disk in disks),
            *(
                User(kind=UserKind.PIN, detail=cached.image.image_id)
                for cached in images
                if cached.image.image_id in pins
            ),
        )

    async def proved(self, base: Base) -> tuple[User, ...]:
        """Give every user there is: the catalog's, overlays on disk, a QEMU with it open."""
        recorded = await self.recorded(base)
        found = await self._store.run_long(
            self._look, self._store.layout.base(base.base_id, base.format)
        )
        known = {
            self._store.layout.disk(user.key, disk_format)
            for user in recorded
            if user.key
            for disk_format in type(base.format)
        }
        return (*recorded, *(user for user in found if user.path not in known))

    def _look(self, base: Path) -> tuple[User, ...]:
        users = list(_overlay_users(self._instances_dir, base))
        for folder in self._scan_dirs:
            users += _overlay_users(folder, base)
            if qcow2.is_empty(folder):
                detail = "is empty, as a mount point is without its file system"
                users.append(User(kind=UserKind.OVERLAY, path=folder, detail=detail))
        try:
            if locks.in_use(base):
                users.append(User(kind=UserKind.QEMU, path=base))
        except OSError as error:
            users.append(User(kind=UserKind.QEMU, path=base, detail=f"cannot be told: {error}"))
        return tuple(users)


def _overlay_users(folder: Path, base: Path) -> Iterator[User]:
    """Give the overlays below ``folder`` that may name ``base``, and the doubts about others."""
    overlays = qcow2.overlays_below(folder)
    for path, backing_file in overlays.backing_files.items():
        if _may_mean(backing_file, path, base):
            yield User(kind=UserKind.OVERLAY, path=path)
    for doubt in overlays.doubts:
        yield User(kind=UserKind.OVERLAY, path=folder, detail=f"cannot be read: {doubt}")


def _may_mean(backing: str, overlay: Path, base: Path) -> bool:
    """Tell whether the name of a backing file may mean the base.

    A name with a protocol (``json:``, ``file:``) is not taken apart: one that holds the base's
    name, or an escape that may hide it, counts.
    """
    if ":" in backing.split("/", 1)[0]:
        return base.name in backing or "\\" in backing
    return os.path.realpath(overlay.parent / backing) == os.path.realpath(base)
