"""What the files in our folders are, as far as their names tell."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cacheagent.model import BaseId, DiskFormat, DiskKey, ImageId, InstanceId
from cacheagent.policy.layout import (
    RefusedName,
    parse_base_name,
    parse_conversion_name,
    parse_disk_file_name,
    parse_instance_name,
    parse_manifest_name,
    parse_part_name,
    parse_part_record_name,
    parse_refused_name,
    parse_refused_record_name,
    parse_template_name,
    parse_unfinished_name,
    parse_unpacked_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cacheagent.policy.layout import Layout

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The names in a folder: of regular files, and of all else, links included."""

    files: Collection[str] = ()
    others: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies in our folders; None stands for a folder that cannot be read.

    ``instances`` has the folders in the instances folder, by name; ``instances_others`` is what
    lies there beside them.
    """

    bases: Folder | None
    ingest: Folder | None
    templates: Folder | None
    trash: Folder | None
    quarantine: Folder | None
    instances: Mapping[str, Folder | None] | None
    instances_others: Collection[str] = ()


class LeftoverKind(enum.Enum):
    """What a file of ours is that is neither a base nor a disk."""

    PART = enum.auto()
    CONVERSION = enum.auto()
    UNPACKED = enum.auto()
    MANIFEST = enum.auto()
    TEMPLATE = enum.auto()
    UNFINISHED = enum.auto()
    TRASH = enum.auto()
    TRASHED_MANIFEST = enum.auto()
    QUARANTINE = enum.auto()
    REFUSED = enum.auto()
    REFUSED_RECORD = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file of ours, with what its name says: of which image, base or disk, in what format.

    The record of a part is a ``PART`` as the part is. A ``REFUSED`` image and its record are told
    by ``refused``, and have no ``image_id``: whoever works on that image does not work on them. A
    template without a base has no ``base_id``. What is ``UNFINISHED`` belongs to whatever it would
    become.
    """

    kind: LeftoverKind
    path: Path
    image_id: ImageId | None = None
    base_id: BaseId | None = None
    format: DiskFormat | None = None
    key: DiskKey | None = None
    refused: RefusedName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is ours by name, and the paths that are not.

    ``bases_readable`` is False where nobody knows which bases there are, ``instance_folders``
    None where nobody knows which instances there are; ``unreadable_instances`` are the folders
    among them of which nobody knows what they hold.
    """

    bases_readable: bool
    bases: tuple[tuple[BaseId, DiskFormat], ...]
    instance_folders: frozenset[InstanceId] | None
    unreadable_instances: frozenset[InstanceId]
    disks: tuple[tuple[DiskKey, DiskFormat], ...]
    leftovers: tuple[Leftover, ...]
    unknown: tuple[Path, ...]


def take(layout: Layout, listing: Listing) -> Inventory:
    """Sort what lies in our folders by what the names say. Everything comes out in order."""
    rest = _Rest()
    bases = rest.sort(layout.bases, listing.bases, parse_base_name, _in_bases)
    for path, folder, leftover in (
        (layout.ingest, listing.ingest, _in_ingest),
        (layout.templates, listing.templates, _in_templates),
        (layout.trash, listing.trash, _in_trash),
        (layout.quarantine, listing.quarantine, _in_quarantine),
    ):
        rest.sort(path, folder, _none, leftover)
    rest.add_unknown(layout.instances_dir, listing.instances_others)
    instances = _instances(layout, listing.instances or {}, rest)
    disks = tuple(_disks(layout, instances, rest))
    return Inventory(
        bases_readable=listing.bases is not None,
        bases=tuple(bases),
        instance_folders=None if listing.instances is None else frozenset(instances),
        unreadable_instances=frozenset(key for key, folder in instances.items() if folder is None),
        disks=disks,
        leftovers=tuple(rest.leftovers),
        unknown=tuple(rest.unknown),
    )


class _Rest:
    """Collects what is neither base nor disk: leftovers of ours, and what is unknown."""

    def __init__(self) -> None:
        self.leftovers: list[Leftover] = []
        self.unknown: list[Path] = []

    def sort(
        self,
        path: Path,
        folder: Folder | None,
        main: Callable[[str], T | None],
        leftover: Callable[[Path], Leftover | None],
    ) -> list[T]:
        """Give what ``main`` takes as its own; note what ``leftover`` takes, and the rest.

        ``leftover`` is also asked what a file would belong to whose making has not ended.
        """
        found = []
        for name in sorted(folder.files) if folder else ():
            final = parse_unfinished_name(name)
            if (item := main(name)) is not None:
                found.append(item)
            elif (file := leftover(path / name)) is not None:
                self.leftovers.append(file)
            elif final is not None and (file := leftover(path / final)) is not None:
                unfinished = replace(file, kind=LeftoverKind.UNFINISHED, path=path / name)
                self.leftovers.append(unfinished)
            else:
                self.unknown.append(path / name)
        self.add_unknown(path, folder.others if folder else ())
        return found

    def add_unknown(self, path: Path, names: Iterable[str]) -> None:
        """Note what is not ours for sure."""
        self.unknown.extend(path / name for name in sorted(names))


def _instances(
    layout: Layout, folders: Mapping[str, Folder | None], rest: _Rest
) -> dict[InstanceId, Folder | None]:
    instances = {}
    for name, folder in sorted(folders.items(), key=itemgetter(0)):
        instance_id = parse_instance_name(name)
        if instance_id is None:
            rest.add_unknown(layout.instances_dir, [name])
        else:
            instances[instance_id] = folder
    return instances


def _disks(
    layout: Layout, instances: Mapping[InstanceId, Folder | None], rest: _Rest
) -> Iterator[tuple[DiskKey, DiskFormat]]:
    for instance_id, folder in instances.items():
        path = layout.instance(instance_id)
        for name, disk_format in rest.sort(path, folder, parse_disk_file_name, _in_instance):
            yield DiskKey(instance_id=instance_id, name=name), disk_format


def _none(_: object) -> None:
    """Take nothing: a room without bases and disks."""


def _in_bases(path: Path) -> Leftover | None:
    if described := parse_manifest_name(path.name):
        return _of_base(LeftoverKind.MANIFEST, path, described)
    base = parse_base_name(path.name)
    return None if base is None else _of_base(LeftoverKind.UNFINISHED, path, base)


def _in_instance(path: Path) -> Leftover | None:
    found = parse_disk_file_name(path.name)
    if found is None:
        return None
    name, disk_format = found
    key = DiskKey(instance_id=InstanceId(path.parent.name), name=name)
    return Leftover(kind=LeftoverKind.UNFINISHED, path=path, format=disk_format, key=key)


def _in_ingest(path: Path) -> Leftover | None:
    if image_id := parse_part_name(path.name) or parse_part_record_name(path.name):
        return Leftover(kind=LeftoverKind.PART, path=path, image_id=image_id)
    if image_id := parse_unpacked_name(path.name):
        return Leftover(kind=LeftoverKind.UNPACKED, path=path, image_id=image_id)
    if converted := parse_conversion_name(path.name):
        return Leftover(kind=LeftoverKind.CONVERSION, path=path, image_id=converted[0])
    return None


def _in_templates(path: Path) -> Leftover | None:
    template = parse_template_name(path.name)
    if template is None:
        return None
    return Leftover(
        kind=LeftoverKind.TEMPLATE, path=path, base_id=template.base_id, format=template.format
    )


def _in_trash(path: Path) -> Leftover | None:
    if base := parse_base_name(path.name):
        return _of_base(LeftoverKind.TRASH, path, base)
    described = parse_manifest_name(path.name)
    return described and _of_base(LeftoverKind.TRASHED_MANIFEST, path, described)


def _in_quarantine(path: Path) -> Leftover | None:
    if refused := parse_refused_name(path.name):
        return Leftover(kind=LeftoverKind.REFUSED, path=path, refused=refused)
    if refused := parse_refused_record_name(path.name):
        return Leftover(kind=LeftoverKind.REFUSED_RECORD, path=path, refused=refused)
    found = parse_base_name(path.name) or parse_manifest_name(path.name)
    return found and _of_base(LeftoverKind.QUARANTINE, path, found)


def _of_base(kind: LeftoverKind, path: Path, base: tuple[BaseId, DiskFormat]) -> Leftover:
    return Leftover(kind=kind, path=path, base_id=base[0], format=base[1])
