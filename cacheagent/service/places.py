"""Where to look, after events of files: folders, disks and bases, each of them once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.backends.inotify import FileEventKind
from cacheagent.model import DiskKey
from cacheagent.policy.layout import (
    parse_disk_file_name,
    parse_instance_name,
    parse_unfinished_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.backends.inotify import FileEvent
    from cacheagent.model import InstanceId
    from cacheagent.policy.layout import Layout

_CAME = frozenset({FileEventKind.CREATED, FileEventKind.MOVED_IN})
WENT = frozenset({FileEventKind.DELETED, FileEventKind.MOVED_OUT})


@dataclass(slots=True, kw_only=True)
class Places:
    """Where something happened.

    Folders that were ``deleted`` or ``moved`` away are in ``came`` as well if they came back after
    that, and folders that came are not if they went again. The same holds for the files of disks:
    ``gone`` are those that went, ``files`` those that were written or came. ``freed`` tells that
    something else went that may have been an overlay. ``bases`` are, in order, what happened to
    what lies beside the bases.
    """

    deleted: set[Path] = field(default_factory=set)
    moved: set[Path] = field(default_factory=set)
    came: set[Path] = field(default_factory=set)
    gone: set[DiskKey] = field(default_factory=set)
    files: dict[DiskKey, Path] = field(default_factory=dict)
    freed: bool = False
    bases: dict[tuple[FileEventKind, Path], None] = field(default_factory=dict)


def places(layout: Layout, events: Iterable[FileEvent]) -> Places:
    """Sum up what happened, in this order. An ``OVERFLOW`` has no place."""
    found, bases = Places(), layout.bases
    for event in events:
        if event.path is None:
            continue
        if event.path.parent == bases:
            found.bases[event.kind, event.path] = None
        elif event.is_folder:
            _add_folder(found, event.kind, event.path)
        elif event.kind is not FileEventKind.CREATED:
            # A new file is told again when it is closed.
            _add_file(layout, found, event.kind, event.path)
    return found


def instances(layout: Layout, folders: Iterable[Path]) -> set[InstanceId]:
    """Give the instances whose own folders are among these."""
    found = {_instance(layout, folder) for folder in folders}
    return {instance_id for instance_id in found if instance_id is not None}


def disks(layout: Layout, files: Iterable[Path]) -> tuple[dict[DiskKey, Path], set[DiskKey]]:
    """Give the files that have a disk's name, and the disks that have an unfinished file."""
    lying: dict[DiskKey, Path] = {}
    unfinished: set[DiskKey] = set()
    for file in files:
        if (key := _key(layout, file)) is not None:
            lying[key] = file
        elif (key := _unfinished_key(layout, file)) is not None:
            unfinished.add(key)
    return lying, unfinished


def _add_folder(found: Places, kind: FileEventKind, path: Path) -> None:
    # FOLDER_GONE says nothing that is not said by the folder above it.
    if kind in _CAME:
        found.came.add(path)
    elif kind in WENT:
        found.came.discard(path)
        (found.moved if kind is FileEventKind.MOVED_OUT else found.deleted).add(path)


def _add_file(layout: Layout, found: Places, kind: FileEventKind, path: Path) -> None:
    key = _key(layout, path)
    if kind not in WENT:
        if key is not None:
            found.files[key] = path
    elif key is not None:
        found.gone.add(key)
        found.files.pop(key, None)
    elif _unfinished_key(layout, path) is None:
        found.freed = True


def _key(layout: Layout, path: Path, name: str | None = None) -> DiskKey | None:
    disk = parse_disk_file_name(name or path.name)
    instance_id = None if disk is None else _instance(layout, path.parent)
    if disk is None or instance_id is None:
        return None
    return DiskKey(instance_id=instance_id, name=disk[0])


def _unfinished_key(layout: Layout, path: Path) -> DiskKey | None:
    final = parse_unfinished_name(path.name)
    return None if final is None else _key(layout, path, final)


def _instance(layout: Layout, folder: Path) -> InstanceId | None:
    return parse_instance_name(folder.name) if folder.parent == layout.instances_dir else None
