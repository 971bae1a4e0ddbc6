"""Which of our files serve nothing any more."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cacheagent.model import BaseState
from cacheagent.policy.inventory import LeftoverKind

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import ImageId
    from cacheagent.policy.drift.bases import BasesPlan
    from cacheagent.policy.drift.states import FilesState, Running
    from cacheagent.policy.inventory import Leftover

_PAIR = frozenset({LeftoverKind.REFUSED, LeftoverKind.REFUSED_RECORD})


class Useless:
    """Tells the files of ours that serve nothing any more, and nobody works on."""

    def __init__(
        self,
        files: FilesState,
        bases: BasesPlan,
        resume: frozenset[ImageId],
        busy: Running,
        *,
        at_start: bool,
    ) -> None:
        self._files = files.inventory
        self._rows = bases.known
        self._kept_trash = bases.kept_trash
        self._described = bases.here.keys() | {
            (base.base_id, base.format) for base in bases.known.values()
        }
        # A refused image and its record are of use together: a crash may leave one of them.
        self._halves = Counter(file.refused for file in self._files.leftovers if file.kind in _PAIR)
        self._resume = resume
        self._busy = busy
        self._at_start = at_start

    def paths(self) -> tuple[Path, ...]:
        """Give their paths."""
        return tuple(
            file.path
            for file in self._files.leftovers
            if not self._is_worked_on(file) and not self._is_useful(file)
        )

    def _is_worked_on(self, file: Leftover) -> bool:
        return (
            file.image_id in self._busy.images
            or file.base_id in self._busy.bases
            or file.key in self._busy.disks
        )

    def _is_useful(self, file: Leftover) -> bool:
        match file.kind:
            case LeftoverKind.PART:
                return file.image_id in self._resume
            case LeftoverKind.MANIFEST:
                return (file.base_id, file.format) in self._described
            case LeftoverKind.TEMPLATE:
                return self._is_template_useful(file)
            case LeftoverKind.TRASH | LeftoverKind.TRASHED_MANIFEST:
                return (file.base_id, file.format) in self._kept_trash
            case LeftoverKind.QUARANTINE:
                return self._is_quarantined(file)
            case _:
                return file.kind in _PAIR and self._halves[file.refused] == len(_PAIR)

    def _is_template_useful(self, file: Leftover) -> bool:
        if file.base_id is None:
            # It is made again when it is wanted; else those of all sizes would pile up.
            return not self._at_start
        return not self._files.bases_readable or file.base_id in self._rows

    def _is_quarantined(self, file: Leftover) -> bool:
        row = None if file.base_id is None else self._rows.get(file.base_id)
        return row is not None and row.state is BaseState.QUARANTINED
