"""Which folders are watched: bases, the whole of the instances folder and of each scan folder.

A folder that cannot be watched is counted and told. What happens in it is found by the passes of
pruner and reconciler, which never rely on events.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from collections.abc import Set as AbstractSet

    from cacheagent.backends.inotify import Watcher
    from cacheagent.policy.layout import Layout
    from cacheagent.service.parts import Parts

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roots:
    """``scanned`` are the scan folders without links in their paths.

    ``skipped`` are folders below them that are none of theirs, ``identities`` device and inode of
    each root, None where there is none.
    """

    scanned: tuple[Path, ...]
    skipped: frozenset[Path]
    identities: Mapping[Path, tuple[int, int] | None]


class Watched:
    """Makes the watches of one ``Watcher`` at a time, and knows what is not watched."""

    def __init__(self, parts: Parts) -> None:
        self._layout = parts.store.layout
        self._store = parts.store
        self._scan_dirs = parts.config().storage.scan_dirs
        self._metric = parts.metrics.unwatched_folders
        self._roots = _Roots(scanned=(), skipped=frozenset(), identities={})
        self._unwatched: dict[Path, str] = {}

    async def begin(self, watcher: Watcher) -> None:
        """Watch all there is."""
        self._unwatched.clear()
        # Before the watches: a folder that changes meanwhile is seen to have changed.
        self._roots = await self._store.run(_survey, self._layout, self._scan_dirs)
        try:
            await watcher.watch(self._layout.bases, modified=True)
        except OSError as error:
            self._count({self._layout.bases: str(error)})
        for root in (self._layout.instances_dir, *self._roots.scanned):
            await self._cover(watcher, root)
            if not watcher.watches(root):
                self._count({root: self._unwatched.get(root, "it is not there")})
        self._metric.set(len(self._unwatched))

    async def changed(self) -> bool:
        """Tell whether a root is another folder now than it was when it was watched."""
        roots = tuple(self._roots.identities)
        return await self._store.run(_identities, roots) != self._roots.identities

    def is_root(self, path: Path) -> bool:
        """Tell whether that is no folder among others."""
        return path in self._roots.identities or path in self._roots.scanned

    async def follow(
        self,
        watcher: Watcher,
        *,
        deleted: Collection[Path],
        moved: Collection[Path],
        came: Collection[Path],
    ) -> tuple[Path, ...]:
        """Watch folders no longer that have gone, and then those that came, with all below them.

        What was below those that were ``moved`` went with them. Give the files that lay in those
        that came when they were watched.
        """
        if deleted:
            await watcher.unwatch(*deleted)
        if moved:
            await watcher.unwatch_tree(*moved)
        self._forget({*deleted, *moved})
        roots = [folder for folder in came if folder not in self._roots.skipped]
        return tuple(map(Path, await self._cover(watcher, *roots))) if roots else ()

    async def _cover(self, watcher: Watcher, *roots: Path) -> tuple[str, ...]:
        tree = await watcher.watch_tree(*roots, skip=self._roots.skipped)
        self._count(tree.unwatched)
        return tree.files

    def _forget(self, gone: AbstractSet[Path]) -> None:
        """Count those folders no longer, nor any below them."""
        for each in list(self._unwatched):
            if not gone.isdisjoint((each, *each.parents)):
                del self._unwatched[each]
        self._metric.set(len(self._unwatched))

    def _count(self, unwatched: Mapping[Path, str]) -> None:
        if unwatched and not self._unwatched:
            # Once is enough: with too many watches there are thousands of them.
            path, why = next(iter(unwatched.items()))
            what = "what happens in a folder is found late"
            _log.warning(what, path=str(path), why=why, folders=len(unwatched))
        self._unwatched |= unwatched
        self._metric.set(len(self._unwatched))


def _survey(layout: Layout, scan_dirs: Iterable[Path]) -> _Roots:
    instances = Path(os.path.realpath(layout.instances_dir))
    scanned = [Path(os.path.realpath(folder)) for folder in scan_dirs]
    state = (layout.state_dir, Path(os.path.realpath(layout.state_dir)))
    return _Roots(
        scanned=tuple(each for each in scanned if not each.is_relative_to(instances)),
        skipped=frozenset((*state, layout.instances_dir, instances)),
        identities=_identities((layout.bases, layout.instances_dir, *scan_dirs)),
    )


def _identities(roots: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    return {root: _identity(root) for root in roots}


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
