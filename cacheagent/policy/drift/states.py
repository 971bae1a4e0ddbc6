"""What is compared: the rows of the catalog, the files, and what is worked on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from cacheagent.model import (
    Base,
    BaseId,
    CachedImage,
    Disk,
    DiskFormat,
    DiskKey,
    GlanceImage,
    ImageId,
)
from cacheagent.policy.inventory import Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogState:
    """All rows of the catalog."""

    bases: tuple[Base, ...] = ()
    images: tuple[CachedImage, ...] = ()
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBase:
    """The file of a base: its name, how long it is, what it takes, and what its manifest says.

    ``manifest`` is None where there is no manifest that can be read. ``doubtful`` is a file of
    which nobody can tell anything.
    """

    base_id: BaseId
    format: DiskFormat
    length: int = 0
    allocated: int = 0
    manifest: Base | None = None
    images: tuple[GlanceImage, ...] = ()
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDisk:
    """A disk's file: its name, and what its header says.

    ``backing`` is the base behind it. ``doubtful`` is a file that cannot be read, that is not
    what its name says, or that is backed by something which is no base of ours.
    """

    key: DiskKey
    format: DiskFormat
    virtual_size: int = 0
    backing: BaseId | None = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesState:
    """The files: the inventory, and what was read from its bases and disks.

    ``wanted_trash`` are the bases in the trash that somebody uses. ``unmounted`` says that the
    folder of the instances is empty, and may be a mount point without its file system.
    """

    inventory: Inventory
    bases: tuple[FoundBase, ...] = ()
    disks: tuple[FoundDisk, ...] = ()
    wanted_trash: tuple[FoundBase, ...] = ()
    unmounted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What is worked on while rows and files are compared: nobody else touches it.

    ``images`` are those whose ingest runs, ``disks`` those that are created, ``bases`` those
    whose lock is held.
    """

    images: frozenset[ImageId] = frozenset()
    disks: frozenset[DiskKey] = frozenset()
    bases: frozenset[BaseId] = frozenset()
