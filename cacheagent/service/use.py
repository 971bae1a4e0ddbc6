"""Who uses a base: asked when needed, of every source, and never remembered."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.backends import locks, qcow2
from cacheagent.backends.qmp import Guests
from cacheagent.model import BaseState, User, UserKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cacheagent.backends.qcow2 import Overlays
    from cacheagent.backends.qmp import GuestFiles
    from cacheagent.model import Base, BaseId, ImageId
    from cacheagent.service.parts import Parts

OUTSIDE = frozenset({UserKind.OVERLAY, UserKind.QEMU, UserKind.GUEST, UserKind.LINK})
"""Users that the catalog does not know: what they use has its last use when they were seen."""


class Use:
    """Proves use; whatever cannot be read counts as a user, so that a doubt keeps the base.

    ``waiters`` tells how many requests wait for an image.
    """

    def __init__(self, parts: Parts, *, waiters: Callable[[ImageId], int]) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._layout = parts.store.layout
        self._now = parts.now
        self._guests = parts.metrics.qmp_guests
        self._qmp = Guests()
        config = parts.config()
        self._scan_dirs = config.storage.scan_dirs
        self._qmp_sockets = config.qemu.qmp_sockets
        self._waiters = waiters
        self._scanner = qcow2.OverlayScanner(parts.store.layout.bases)

    async def proved(self, base: Base) -> tuple[User, ...]:
        """Give every user of the base, of all sources."""
        return (await self.users([base]))[base.base_id]

    async def users(self, bases: Sequence[Base]) -> Mapping[BaseId, tuple[User, ...]]:
        """Give every user of each of the bases, of all sources, each of them asked once."""
        held = await self._catalog.users(self._now())
        waiting = await self._waiting()
        outside = await self._outside({base.base_id: self.path(base) for base in bases}, held)
        return {
            base.base_id: (
                *held.get(base.base_id, ()),
                *(User(kind=UserKind.WAITER, detail=each) for each in waiting[base.base_id]),
                *self._counting(base, outside[base.base_id]),
            )
            for base in bases
        }

    async def outside(self, files: Mapping[BaseId, Path]) -> Mapping[BaseId, tuple[User, ...]]:
        """Give the users that the catalog does not know: overlays, QEMUs, guests, hard links.

        ``files`` tells where the file of each base lies now. An overlay of a disk of ours is
        among them.
        """
        return await self._outside(files, {})

    async def _outside(
        self, files: Mapping[BaseId, Path], held: Mapping[BaseId, Sequence[User]]
    ) -> Mapping[BaseId, tuple[User, ...]]:
        """Do so, but leave out the overlays that are disks among those who ``held`` a base."""
        guests = await self._qmp.files(self._qmp_sockets)
        self._guests.labels(state="reachable").set(len(guests.names))
        self._guests.labels(state="unreachable").set(len(guests.unreachable))
        return await self._store.run_long(self._look, files, guests, held)

    def path(self, base: Base) -> Path:
        """Give the path by which overlays name the base."""
        return self._layout.base(base.base_id, base.format)

    def _counting(self, base: Base, found: Iterable[User]) -> Iterator[User]:
        """Leave out what is said of the file of a damaged base: it does not lie there any more."""
        gone = self.path(base) if base.state is BaseState.QUARANTINED else None
        return (user for user in found if gone is None or user.path != gone)

    async def _waiting(self) -> Mapping[BaseId, list[ImageId]]:
        waiting: dict[BaseId, list[ImageId]] = defaultdict(list)
        for cached in await self._catalog.images():
            image_id = cached.image.image_id
            if cached.base_id is not None and self._waiters(image_id):
                waiting[cached.base_id].append(image_id)
        return waiting

    def _strangers(self, overlays: Iterable[str], known: Iterable[User]) -> Iterator[Path]:
        """Give the overlays that are not the files of disks that the catalog has named already.

        Nor our templates: a folder to scan may hold the state folder.
        """
        disks = {(user.key.instance_id, user.key.name) for user in known if user.key}
        ours, templates = str(self._layout.instances_dir), str(self._layout.templates)
        for path in overlays:
            folder, _, name = path.rpartition("/")
            parent, _, instance = folder.rpartition("/")
            is_known = parent == ours and (instance, name.rpartition(".")[0]) in disks
            if not is_known and folder != templates:
                yield Path(path)

    def _look(
        self,
        files: Mapping[BaseId, Path],
        guests: GuestFiles,
        held: Mapping[BaseId, Sequence[User]],
    ) -> Mapping[BaseId, tuple[User, ...]]:
        overlays = self._scanner.scan(self._layout.instances_dir, self._scan_dirs)
        named = _by_base(self._layout.bases, guests)
        doubts = (*_overlay_doubts(overlays), *_guest_doubts(guests))
        return {
            base_id: (
                *_users(
                    UserKind.OVERLAY,
                    self._strangers(overlays.users.get(path.name, ()), held.get(base_id, ())),
                ),
                *_users(UserKind.GUEST, named.get(path.name, ())),
                *_open_or_linked(path),
                *doubts,
            )
            for base_id, path in files.items()
        }


def _users(kind: UserKind, paths: Iterable[Path]) -> Iterator[User]:
    return (User(kind=kind, path=path) for path in paths)


def _by_base(bases: Path, guests: GuestFiles) -> Mapping[str, list[Path]]:
    """Give, for the file name of each base, the sockets of the guests that have it open."""
    found: dict[str, list[Path]] = defaultdict(list)
    for socket, names in guests.names.items():
        for base in qcow2.bases_named(bases, names):
            found[base].append(socket)
    return found


def _overlay_doubts(overlays: Overlays) -> Iterator[User]:
    for doubt in overlays.doubts:
        yield User(kind=UserKind.DOUBT, path=doubt.path, detail=doubt.why)


def _guest_doubts(guests: GuestFiles) -> Iterator[User]:
    for socket, why in guests.unreachable.items():
        yield User(kind=UserKind.DOUBT, path=socket, detail=why)


def _open_or_linked(path: Path) -> Iterator[User]:
    """Look at the file itself: at QEMU's locks on it, and at its other names."""
    try:
        if locks.in_use(path):
            yield User(kind=UserKind.QEMU, path=path)
        names = os.lstat(path).st_nlink
        if names > 1:
            yield User(kind=UserKind.LINK, path=path, detail=f"has {names} names")
    except OSError as error:
        yield User(kind=UserKind.DOUBT, path=path, detail=str(error))
