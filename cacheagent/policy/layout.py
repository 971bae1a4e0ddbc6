"""Names of files and folders: from what they stand for to the path, and back.

No other module knows what a file of ours is called. A name is ours when one of the parsers here
takes it; anything else in our folders is unknown, and nobody touches it. Paths are only computed:
nothing here looks at a file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cacheagent.model import (
    DISK_NAME_PATTERN,
    UUID_PATTERN,
    Base,
    BaseId,
    DiskFormat,
    DiskKey,
    DiskName,
    ImageId,
    InstanceId,
    parse_base_id,
)

_BLANK = "blank"
_FORMAT = "|".join(DiskFormat)
_BASE_NAME = re.compile(rf"(?P<base>[0-9a-z]+-[0-9a-f]+)\.(?P<format>{_FORMAT})")
_INGEST_NAME = re.compile(
    rf"(?P<image>{UUID_PATTERN})\.(?P<kind>part|part\.json|unpacked|{_FORMAT})"
)
_DISK_NAME = re.compile(rf"(?P<name>{DISK_NAME_PATTERN})\.(?P<format>{_FORMAT})")
_TEMPLATE_NAME = re.compile(
    rf"(?P<base>{_BLANK}|[0-9a-z]+-[0-9a-f]+)\.[0-9]+\.[0-9a-f]{{16}}\.(?P<format>{_FORMAT})"
)
_REFUSED_NAME = re.compile(
    rf"(?P<image>{UUID_PATTERN})\.(?P<at>[0-9]{{8}}T[0-9]{{12}}Z)\.(?P<reason>[a-z][a-z0-9_-]{{0,63}})"
)
_REFUSED_AT = "%Y%m%dT%H%M%S%fZ"
_UNFINISHED_NAME = re.compile(r"\.(?P<name>.+)\.making")
_MANIFEST_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateName:
    """What the name of a template tells: the base behind it (None: blank), and its format."""

    base_id: BaseId | None
    format: DiskFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedName:
    """What the name of a refused image's file tells: which image, when (UTC), and why.

    ``reason`` is the rule that it broke, or ``digest-mismatch``.
    """

    image_id: ImageId
    at: datetime
    reason: str

    def __str__(self) -> str:
        """Give the name of the file."""
        return f"{self.image_id}.{self.at.astimezone(UTC):{_REFUSED_AT}}.{self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything lies below the two folders of the configuration.

    Every method that makes a path raises ``ValueError`` if the path would leave its folder. That
    cannot happen with identifiers that were parsed; it is here so that it never will.
    """

    state_dir: Path
    instances_dir: Path

    @property
    def lock(self) -> Path:
        """The file that one agent holds locked."""
        return self.state_dir / "lock"

    @property
    def catalog(self) -> Path:
        """The database of the catalog."""
        return self.state_dir / "catalog.db"

    @property
    def spare(self) -> Path:
        """The file whose bytes are given up when a file system is full."""
        return self.state_dir / "spare"

    @property
    def bases(self) -> Path:
        """The folder of the bases and their manifests."""
        return self.state_dir / "bases"

    @property
    def ingest(self) -> Path:
        """The folder of downloads and conversions that have not ended."""
        return self.state_dir / "ingest"

    @property
    def templates(self) -> Path:
        """The folder of the empty overlays that disks are cloned from."""
        return self.state_dir / "templates"

    @property
    def trash(self) -> Path:
        """The folder of files that are about to be removed."""
        return self.state_dir / "trash"

    @property
    def quarantine(self) -> Path:
        """The folder of files that failed verification."""
        return self.state_dir / "quarantine"

    def base(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of a base."""
        return _child(self.bases, f"{base_id}.{fmt}")

    def manifest(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of the manifest of a base: its own path, and ``.json``."""
        return _child(self.bases, f"{base_id}.{fmt}{_MANIFEST_SUFFIX}")

    def trashed(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of a base on its way out; one that lies there already may be replaced."""
        return _child(self.trash, f"{base_id}.{fmt}")

    def trashed_manifest(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of the manifest of a base on its way out."""
        return _child(self.trash, f"{base_id}.{fmt}{_MANIFEST_SUFFIX}")

    def quarantined(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of a base that failed verification; an older one there may be replaced."""
        return _child(self.quarantine, f"{base_id}.{fmt}")

    def quarantined_manifest(self, base_id: BaseId, fmt: DiskFormat) -> Path:
        """Path of the manifest of a base that failed verification."""
        return _child(self.quarantine, f"{base_id}.{fmt}{_MANIFEST_SUFFIX}")

    def refused(self, name: RefusedName) -> Path:
        """Path of the file of an image that was refused after it had come."""
        return _child(self.quarantine, str(name))

    def refused_record(self, name: RefusedName) -> Path:
        """Path of the record of what was found in it."""
        return _child(self.quarantine, f"{name}{_MANIFEST_SUFFIX}")

    def part(self, image_id: ImageId) -> Path:
        """Path of the bytes of a download that has not ended."""
        return _child(self.ingest, f"{image_id}.part")

    def part_record(self, image_id: ImageId) -> Path:
        """Path of the record of what ``part`` holds, for going on after a restart."""
        return _child(self.ingest, f"{image_id}.part{_MANIFEST_SUFFIX}")

    def conversion(self, image_id: ImageId, fmt: DiskFormat = DiskFormat.RAW) -> Path:
        """Path of what a download is converted into."""
        return _child(self.ingest, f"{image_id}.{fmt}")

    def unpacked(self, image_id: ImageId) -> Path:
        """Path of the disk that was taken out of an archive or a compressed stream."""
        return _child(self.ingest, f"{image_id}.unpacked")

    def template(self, base: Base | None, fmt: DiskFormat, size: int, options: str) -> Path:
        """Path of the empty overlay of ``base`` (None: without one) with this virtual size.

        A template holds the path of its base and the options it was made with, so both are part
        of the name, as a hash: a state folder that moved, or a base that came back in another
        format, never meets a template that points elsewhere.
        """
        backing = "" if base is None else str(self.base(base.base_id, base.format))
        mark = hashlib.sha256(f"{backing}\0{options}".encode()).hexdigest()[:16]
        return _child(
            self.templates, f"{_BLANK if base is None else base.base_id}.{size}.{mark}.{fmt}"
        )

    def instance(self, instance_id: InstanceId) -> Path:
        """Path of the folder of an instance."""
        return _child(self.instances_dir, instance_id)

    def disk(self, key: DiskKey, fmt: DiskFormat) -> Path:
        """Path of a disk."""
        return _child(self.instances_dir, key.instance_id, f"{key.name}.{fmt}")

    def unfinished_disk(self, key: DiskKey, fmt: DiskFormat) -> Path:
        """Path of a disk while it is being made."""
        return unfinished(self.disk(key, fmt))

    def base_of(self, path: Path) -> tuple[BaseId, DiskFormat] | None:
        """Tell which base an absolute path without ``..`` names, None if it names none."""
        return parse_base_name(path.name) if path.parent == self.bases else None


def unfinished(path: Path) -> Path:
    """Path beside ``path`` for the time in which it is being made: to be renamed when done."""
    return path.with_name(f".{path.name}.making")


def broken(path: Path, number: int) -> Path:
    """Path beside ``path`` for what was found there and cannot be read; kept for people."""
    return path.with_name(f"{path.name}.broken-{number}")


def parse_unfinished_name(name: str) -> str | None:
    """Give the final name of a file that is being made, None if ``name`` is no such name.

    Whether that final name is one of ours is for the parser of its folder to say.
    """
    match = _UNFINISHED_NAME.fullmatch(name)
    return match["name"] if match else None


def parse_base_name(name: str) -> tuple[BaseId, DiskFormat] | None:
    """Take the name of a base apart, None if it is not one."""
    match = _BASE_NAME.fullmatch(name)
    if match is None or (base_id := _known_base_id(match["base"])) is None:
        return None
    return base_id, DiskFormat(match["format"])


def parse_manifest_name(name: str) -> tuple[BaseId, DiskFormat] | None:
    """Tell which base a manifest of this name describes, None if it is not one."""
    stem = name.removesuffix(_MANIFEST_SUFFIX)
    return None if stem == name else parse_base_name(stem)


def refused_name(image_id: ImageId, at: datetime, reason: str) -> RefusedName:
    """Name the file of a refused image; a reason that is no word of a name is spelled as one."""
    word = re.sub(r"[^a-z0-9_-]", "-", reason.lower()).lstrip("-_0123456789")[:64]
    return RefusedName(image_id=image_id, at=at.astimezone(UTC), reason=word or "other")


def parse_refused_name(name: str) -> RefusedName | None:
    """Take the name of a refused image's file apart, None if it is not one."""
    match = _REFUSED_NAME.fullmatch(name)
    if match is None:
        return None
    try:
        at = datetime.strptime(match["at"], _REFUSED_AT).replace(tzinfo=UTC)
    except ValueError:  # a month of 13
        return None
    return RefusedName(image_id=ImageId(match["image"]), at=at, reason=match["reason"])


def parse_refused_record_name(name: str) -> RefusedName | None:
    """Tell which refused file a record of this name is about, None if it is not one."""
    stem = name.removesuffix(_MANIFEST_SUFFIX)
    return None if stem == name else parse_refused_name(stem)


def parse_part_name(name: str) -> ImageId | None:
    """Tell whose download the bytes in a file of this name are, None if it is not one."""
    match = _INGEST_NAME.fullmatch(name)
    return ImageId(match["image"]) if match and match["kind"] == "part" else None


def parse_part_record_name(name: str) -> ImageId | None:
    """Tell whose download a record of this name describes, None if it is not one."""
    match = _INGEST_NAME.fullmatch(name)
    return ImageId(match["image"]) if match and match["kind"] == "part.json" else None


def parse_unpacked_name(name: str) -> ImageId | None:
    """Tell which image was unpacked into a file of this name, None if it is not one."""
    match = _INGEST_NAME.fullmatch(name)
    return ImageId(match["image"]) if match and match["kind"] == "unpacked" else None


def parse_conversion_name(name: str) -> tuple[ImageId, DiskFormat] | None:
    """Tell which image is converted in a file of this name, None if it is not one."""
    match = _INGEST_NAME.fullmatch(name)
    if match is None or match["kind"] not in set(DiskFormat):
        return None
    return ImageId(match["image"]), DiskFormat(match["kind"])


def parse_template_name(name: str) -> TemplateName | None:
    """Take the name of a template apart, None if it is not one."""
    match = _TEMPLATE_NAME.fullmatch(name)
    if match is None:
        return None
    base_id = None if match["base"] == _BLANK else _known_base_id(match["base"])
    if base_id is None and match["base"] != _BLANK:
        return None
    return TemplateName(base_id=base_id, format=DiskFormat(match["format"]))


def parse_instance_name(name: str) -> InstanceId | None:
    """Tell whose folder has this name, None if it is nobody's."""
    return InstanceId(name) if re.fullmatch(UUID_PATTERN, name) else None


def parse_disk_file_name(name: str) -> tuple[DiskName, DiskFormat] | None:
    """Take the name of a disk's file apart, None if it is not one."""
    match = _DISK_NAME.fullmatch(name)
    return (DiskName(match["name"]), DiskFormat(match["format"])) if match else None


def _known_base_id(text: str) -> BaseId | None:
    try:
        return parse_base_id(text).base_id
    except ValueError:
        return None


def _child(folder: Path, *names: str) -> Path:
    for name in names:
        if name in {"", ".", ".."} or "/" in name:
            raise ValueError(f"{name!r} is not a name inside of {folder}")
    return folder.joinpath(*names)
