"""Rows and files of bases, compared."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from cacheagent.model import Base, BaseId, BaseState, CachedImage, DiskFormat, ImageId
from cacheagent.policy.verification import has_right_length

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cacheagent.policy.drift.states import CatalogState, FilesState, FoundBase, Running


class BasesPlan:
    """Sorts rows and files of bases. Where the folder cannot be read, all rows stay.

    READY rows without a file are to ``drop`` unless a disk has ``needed`` the base: then it is
    ``lost``, as is one whose file has another length.
    ``undescribed`` have lost their manifest, ``unproved`` are files that never had one.
    ``kept_trash`` is what in the trash must not be removed. ``known`` are the rows that the
    catalog has when the plan was carried out, ``here`` the files.
    """

    def __init__(
        self,
        catalog: CatalogState,
        files: FilesState,
        busy: Running,
        needed: frozenset[BaseId],
        now: datetime,
    ) -> None:
        self.drop: list[BaseId] = []
        self.lost: list[BaseId] = []
        self.finish: list[BaseId] = []
        self.revert: list[BaseId] = []
        self.quarantine: list[tuple[BaseId, DiskFormat]] = []
        self.restore: list[tuple[BaseId, DiskFormat]] = []
        self.kept_trash: set[tuple[BaseId, DiskFormat]] = set()
        self.adopt: list[Base] = []
        self.undescribed: list[BaseId] = []
        self.unproved: list[tuple[BaseId, DiskFormat]] = []
        self.strays: list[FoundBase] = []
        self.known: dict[BaseId, Base] = {}
        self.here = {(found.base_id, found.format): found for found in files.bases}
        self._busy = busy.bases
        self._needed = needed
        self._doubt = not files.inventory.bases_readable
        self._restore(files.wanted_trash)
        for row in catalog.bases:
            self._sort_row(row)
        # The newest first: of two files with one content, one is the base and the other is none.
        for found in sorted(self.here.values(), key=_fetched_at, reverse=True):
            if found.base_id not in self._busy:
                self._sort_file(found, now)

    def _restore(self, wanted: Sequence[FoundBase]) -> None:
        for found in wanted:
            name = (found.base_id, found.format)
            if name in self.here:
                continue
            self.kept_trash.add(name)
            if not self._doubt and found.base_id not in self._busy:
                self.restore.append(name)
                self.here[name] = found

    def _sort_row(self, row: Base) -> None:
        file = self.here.get((row.base_id, row.format))
        certain = not self._doubt and row.base_id not in self._busy
        missing = file is None and certain
        if row.state is BaseState.READY and missing and row.base_id not in self._needed:
            self.drop.append(row.base_id)
            return
        if row.state is BaseState.EVICTING and missing:
            self.finish.append(row.base_id)
            return
        if row.state is BaseState.EVICTING and certain:
            self.revert.append(row.base_id)
        elif row.state is BaseState.QUARANTINED and file is not None and certain:
            self.quarantine.append((row.base_id, row.format))
        elif row.state is BaseState.READY and certain:
            self._compare(row, file)
        self.known[row.base_id] = row

    def _compare(self, row: Base, file: FoundBase | None) -> None:
        if file is None or not has_right_length(row, file.length):
            self.lost.append(row.base_id)
        elif file.manifest is None:
            self.undescribed.append(row.base_id)

    def _sort_file(self, found: FoundBase, now: datetime) -> None:
        row = self.known.get(found.base_id)
        base = _taken_in(found, now)
        if row is None and base is not None:
            self.adopt.append(base)
            self.known[base.base_id] = base
        elif row is None:
            self.unproved.append((found.base_id, found.format))
            self.strays.append(found)
        elif row.format is not found.format:
            self.strays.append(found)


def adopted_images(bases: BasesPlan) -> dict[ImageId, CachedImage]:
    """Give the images that the manifests of new bases name; of two claims the newer holds."""
    return {
        image.image_id: CachedImage(image=image, base_id=base.base_id, requested_at=base.fetched_at)
        for base in sorted(bases.adopt, key=attrgetter("fetched_at"))
        for image in bases.here[base.base_id, base.format].images
    }


def _fetched_at(found: FoundBase) -> float:
    return found.manifest.fetched_at.timestamp() if found.manifest else 0.0


def _taken_in(found: FoundBase, now: datetime) -> Base | None:
    """Give the base that the file is; None without a manifest of its own: nothing was proved."""
    base = found.manifest
    if base is None or (base.base_id, base.format) != (found.base_id, found.format):
        return None
    if not has_right_length(base, found.length):
        return None
    return replace(base, state=BaseState.READY, allocated=found.allocated, last_used_at=now)
