"""Who uses a base: asked when needed, of every source, and never remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.backends import locks, qcow2
from cacheagent.model import User, UserKind

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Base
    from cacheagent.service.parts import Parts


class Use:
    """Proves use; whatever cannot be read counts as a user, so that a doubt keeps the base."""

    def __init__(self, parts: Parts) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._instances_dir = parts.store.layout.instances_dir
        self._scanner = qcow2.OverlayScanner(parts.store.layout.bases)
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
        overlays = self._scanner.scan(self._instances_dir, self._scan_dirs)
        users = [
            User(kind=UserKind.OVERLAY, path=path) for path in overlays.users.get(base.name, ())
        ]
        users += [
            User(kind=UserKind.OVERLAY, path=doubt.path, detail=doubt.why)
            for doubt in overlays.doubts
        ]
        try:
            if locks.in_use(base):
                users.append(User(kind=UserKind.QEMU, path=base))
        except OSError as error:
            users.append(User(kind=UserKind.QEMU, path=base, detail=f"cannot be told: {error}"))
        return tuple(users)
