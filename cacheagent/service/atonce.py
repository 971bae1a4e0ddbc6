"""Disks that need nothing but a copy of a template: claimed, made and written down in one go.

Each step of a disk by itself would wake a thread, and that the event loop again. Here one thread
takes all that wait, and does each step for all of them: one transaction claims their names, their
files wait for the device together, one transaction says that they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import Claim
from cacheagent.backends.store import Clone
from cacheagent.errors import DiskFullError
from cacheagent.model import Disk, DiskMode
from cacheagent.policy.boot import is_ami
from cacheagent.service.intent import not_ours
from cacheagent.sync.lane import Ended, Lane
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cacheagent.backends.catalog import Fit
    from cacheagent.model import DiskSpec
    from cacheagent.service.parts import Parts

    Wish = tuple[Disk, Fit]
    """A disk that is wanted, and what tells whether a base will do: see ``Catalog.claim_disk``."""

MOST = 64
"""Disks that are made together; each has two open files meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """What was claimed; what came of the file, and of the row, where it has come to them."""

    claim: Claim
    file: Ended | None = None
    row: Ended | None = None


class AtOnce:
    """One thread that makes such disks. It belongs to the event loop that it was built on.

    ``on_made`` is told of each disk that is there, also where nobody waits for it any more.
    """

    def __init__(self, parts: Parts, on_made: Callable[[Disk], None]) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._now = parts.now
        self._options = parts.config().overlay.options
        self._on_made = on_made
        self._lane: Lane[Wish] = Lane(1, "disks", self._grant, MOST)

    async def close(self) -> None:
        """End the thread; no disk is being made any more."""
        await self._lane.close()

    @staticmethod
    def suits(spec: DiskSpec) -> bool:
        """Tell whether a copy of a template may be all that such a disk needs."""
        return spec.mode is DiskMode.OVERLAY and spec.image_id is not None

    async def make(self, wanted: Disk, fit: Fit) -> tuple[Claim, Disk | None]:
        """Claim the disk as ``Catalog.claim_disk``; make it, where base and template are at hand.

        Gives None for a disk that has yet to be made; no file is left of it. Who is cancelled
        waits for the end, and finds a disk that was claimed made or not begun.

        Raises:
            DiskConflictError: somebody else's file has the name of the disk.
            DiskFullError: there is no room for the claim.
            Exception: what else kept it from being claimed, or made.

        """
        return await uninterrupted(self._make((wanted, fit)))

    async def _make(self, wish: Wish) -> tuple[Claim, Disk | None]:
        attempt: _Attempt = await self._lane.run(wish)
        made, error = attempt.row or attempt.file or (None, None)
        if error is not None:
            await self._undo(wish[0], attempt)
            if isinstance(error, FileExistsError):
                raise not_ours(self._store.layout.disk(wish[0].key, wish[0].format)) from error
            # With room for it, it is made by itself.
            if not isinstance(error, DiskFullError):
                raise error
        if not isinstance(made, Disk):
            return attempt.claim, None
        self._on_made(made)
        return attempt.claim, made

    async def _undo(self, disk: Disk, attempt: _Attempt) -> None:
        if attempt.row is not None:
            await self._store.remove_disk(disk.key, disk.format)
        else:
            await self._store.abandon_disk(disk.key)

    def _grant(self, wishes: Sequence[Wish]) -> list[Ended]:
        """Do each step for all, in the thread: what fails for one ends that one."""
        claims = self._catalog.claim_disks(wishes)
        clones = {
            number: clone
            for number, (claim, error) in enumerate(claims)
            if error is None and (clone := self._clone(claim)) is not None
        }
        files = dict(zip(clones, self._store.clone_disks(list(clones.values())), strict=True))
        named = [number for number, (made, _) in files.items() if made]
        finished = [claims[number][0].intent for number in named]
        rows = dict(zip(named, self._catalog.finish_disks(finished, self._now()), strict=True))
        return [
            (None, error)
            if error is not None
            else (_Attempt(claim=claim, file=files.get(number), row=rows.get(number)), None)
            for number, (claim, error) in enumerate(claims)
        ]

    def _clone(self, claim: Claim) -> Clone | None:
        """Say what the disk is to be made of; None where that is not at hand."""
        if claim.intent is None or claim.found is None or is_ami(claim.found[0].image):
            return None
        disk, base = claim.intent, claim.found[1]
        path = self._store.layout.template(base, disk.format, disk.virtual_size, self._options)
        template = self._store.kept_template(path)
        if template is None:
            return None
        return Clone(template=template, key=disk.key, format=disk.format, base=base)
