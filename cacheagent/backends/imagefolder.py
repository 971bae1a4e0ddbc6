"""A folder of image files, seen as images: their metadata, their digests, their bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cacheagent import mistakes
from cacheagent.model import UUID_PATTERN, GlanceImage, ImageId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

DISK_FORMATS = {
    ".raw": "raw",
    ".img": "raw",
    ".qcow2": "qcow2",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhd": "vhd",
    ".vpc": "vhd",
    ".vhdx": "vhdx",
    ".iso": "iso",
    ".ami": "ami",
    ".aki": "aki",
    ".ari": "ari",
}
"""Endings of the files that are images, with Glance's name of what is in them."""

COMPRESSED = frozenset({".gz", ".xz", ".bz2", ".zst"})
"""Endings behind one of those, for a compressed image."""

_ARCHIVE = ".ova"

_NAMESPACE = uuid.UUID("5d2c2b53-7a3b-4d0f-9a53-0d4c1a6c7e11")
_AMAZON = frozenset({"ami", "aki", "ari"})
_BLOCK = 1 << 20
_QCOW2_HEAD = 32  # magic, version, backing file, cluster bits, then the size at byte 24

_log = structlog.get_logger(__name__)


class SideCar(BaseModel):
    """What ``NAME.EXT.json`` beside an image may say of it; all of it may be left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=f"^{UUID_PATTERN}$")] | None = None
    name: str | None = None
    disk_format: (
        Literal["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "ami", "aki", "ari"] | None
    ) = None
    container_format: Literal["bare", "ova", "ovf", "compressed", "ami", "aki", "ari"] | None = None
    kernel_id: Annotated[str, Field(pattern=f"^{UUID_PATTERN}$")] | None = None
    ramdisk_id: Annotated[str, Field(pattern=f"^{UUID_PATTERN}$")] | None = None
    status: Literal["active", "deactivated", "queued"] = "active"
    visibility: Literal["public", "community", "shared", "private"] = "public"
    min_disk: Annotated[int, Field(ge=0)] = 0
    os_hidden: bool = False
    img_signature: str | None = None
    img_signature_hash_method: str | None = None
    img_signature_key_type: str | None = None
    img_signature_certificate_uuid: str | None = None

    def signed(self) -> Mapping[str, str]:
        """Give the properties of a signature, those that are there."""
        return {
            name: value
            for name, value in self.model_dump(exclude_none=True).items()
            if name.startswith("img_signature")
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImage:
    """An image of the folder; ``mtime`` is seconds since the epoch.

    ``signed`` are the properties of its signature, as its owner wrote them.
    """

    image: GlanceImage
    path: Path
    mtime: float
    os_hidden: bool
    signed: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Version:
    """A file as it was at one moment; any write to it changes one of these."""

    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> _Version:
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the name of a file tells: Glance's two formats, and the name without the endings."""

    disk_format: str
    container_format: str
    name: str


def _kind(path: Path) -> _Kind | None:
    ending, stem = path.suffix.lower(), Path(path.stem)
    if ending == _ARCHIVE:
        return _Kind("vmdk", "ova", path.stem)
    if ending in COMPRESSED and (inner := DISK_FORMATS.get(stem.suffix.lower())) is not None:
        return _Kind(inner, "compressed", stem.stem)
    disk_format = DISK_FORMATS.get(ending)
    return None if disk_format is None else _Kind(disk_format, "bare", path.stem)


@dataclass(frozen=True, slots=True)
class _Found:
    """A file with its side-car, before its bytes are read."""

    version: _Version
    card: SideCar

    @property
    def image_id(self) -> ImageId:
        return ImageId(self.card.id or str(uuid.uuid5(_NAMESPACE, self.version.path.name)))

    @property
    def kind(self) -> _Kind:
        """What the ending tells, but for what the side-car says."""
        kind = _kind(self.version.path)
        assert kind is not None  # noqa: S101 -- else it was not found
        disk_format = self.card.disk_format or kind.disk_format
        own = disk_format if disk_format in _AMAZON else "bare"
        container = own if kind.container_format == "bare" else kind.container_format
        return _Kind(disk_format, self.card.container_format or container, kind.name)


@dataclass(frozen=True, slots=True)
class _Digests:
    sha512: str
    md5: str
    head: bytes


class ImageFolder:
    """The images of a folder, as it is at each call; nothing below it, and no symbolic links.

    A file is read whole once for its digests, and again after it has changed. An image whose file
    changes while it is read, or cannot be read, has the status ``queued``, no size and no digest.
    A file whose side-car cannot be used is no image; the log says why.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="imagefolder")
        self._stopping = threading.Event()
        self._scanning = asyncio.Lock()
        self._digests: dict[_Version, asyncio.Future[_Digests | None]] = {}
        self._cards: dict[Path, tuple[_Version, SideCar | None]] = {}

    async def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def images(self) -> list[FolderImage]:
        """Give all images by name and id, after all of them have been read."""
        found = await self._scan()
        images = await asyncio.gather(*(_describe(*each) for each in found.values()))
        return sorted(images, key=lambda each: (each.image.name, each.image.image_id))

    async def find(self, image_id: str) -> FolderImage | None:
        """Give one image after it has been read, None where it is not there."""
        found = (await self._scan()).get(ImageId(image_id))
        return None if found is None else await _describe(*found)

    async def open(self, image: FolderImage) -> BinaryIO | None:
        """Open the file of an image; None where it is not the file that was read any more."""
        return await asyncio.to_thread(_open_as_described, image)

    async def _scan(self) -> dict[ImageId, tuple[_Found, asyncio.Future[_Digests | None]]]:
        """List the folder and start reading what is new."""
        loop = asyncio.get_running_loop()
        async with self._scanning:  # an older listing must not drop what a newer one has read
            found = await asyncio.to_thread(self._list)
            self._digests = {
                each.version: self._digests.get(each.version)
                or loop.run_in_executor(self._threads, _read, each.version, self._stopping)
                for each in found.values()
            }
            return {key: (each, self._digests[each.version]) for key, each in found.items()}

    def _list(self) -> dict[ImageId, _Found]:
        found: dict[ImageId, _Found] = {}
        for version in sorted(self._versions(), key=lambda version: version.path):
            card = self._card(version.path)
            if card is not None:
                each = _Found(version, card)
                if found.setdefault(each.image_id, each) is not each:
                    _log.warning("image_id_taken", path=str(version.path), id=each.image_id)
        return found

    def _versions(self) -> Iterator[_Version]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                path = Path(entry.path)
                known = _kind(path) is not None and not entry.name.startswith(".")
                with contextlib.suppress(FileNotFoundError):  # it may go while we look
                    if known and entry.is_file(follow_symlinks=False):
                        yield _Version.of(path, entry.stat(follow_symlinks=False))

    def _card(self, path: Path) -> SideCar | None:
        """Give the side-car of an image, an empty one where there is none, None for a bad one."""
        card_path = path.with_name(f"{path.name}.json")
        try:
            status = card_path.lstat()
        except FileNotFoundError:
            return SideCar()
        version = _Version.of(card_path, status)
        known, card = self._cards.get(path, (None, None))
        if known != version:
            card = _read_card(card_path, status)
            self._cards[path] = (version, card)
        return card


def _read_card(path: Path, status: os.stat_result) -> SideCar | None:
    if not stat.S_ISREG(status.st_mode):
        _log.warning("side_car_refused", path=str(path), problem="is no regular file")
        return None
    try:
        return SideCar.model_validate_json(path.read_bytes())
    except OSError as error:
        problem = error.strerror or str(error)
    except ValidationError as error:
        problem = "; ".join(_sentence(mistake) for mistake in error.errors())
    _log.warning("side_car_refused", path=str(path), problem=problem)
    return None


def _sentence(mistake: ErrorDetails) -> str:
    key = ".".join(map(str, mistake["loc"]))
    match mistake["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "json_invalid":
            return f"is not JSON: {mistake['ctx']['error']}"
        case "model_type" if not key:
            return "must be an object with keys"
        case _:
            return f"{key}: {mistakes.sentence(mistake)}"


def _open(path: Path) -> BinaryIO:
    # Another file may have taken the name since the folder was listed: a link, a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=0)


def _read(version: _Version, stopping: threading.Event) -> _Digests | None:
    """Read a file whole; None where it changes meanwhile or cannot be read."""
    sha512, md5, head = hashlib.sha512(), hashlib.md5(usedforsecurity=False), b""
    try:
        with _open(version.path) as file:
            while (block := file.read(_BLOCK)) and not stopping.is_set():
                head = head or block[:_QCOW2_HEAD]
                sha512.update(block)
                md5.update(block)
            same = _Version.of(version.path, os.fstat(file.fileno())) == version
    except OSError as error:
        _log.warning("image_unreadable", path=str(version.path), problem=str(error))
        return None
    if stopping.is_set() or not same:
        return None
    return _Digests(sha512.hexdigest(), md5.hexdigest(), head)


def _open_as_described(image: FolderImage) -> BinaryIO | None:
    try:
        file = _open(image.path)
    except OSError:
        return None
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns / 1e9) != (image.image.size, image.mtime):
        file.close()
        return None
    return file


async def _describe(found: _Found, reading: asyncio.Future[_Digests | None]) -> FolderImage:
    # Shielded: whoever waits may go away, the reading is for all.
    digests = await asyncio.shield(reading)
    version, card, kind = found.version, found.card, found.kind
    image = GlanceImage(
        image_id=found.image_id,
        name=card.name or kind.name,
        status=card.status if digests else "queued",
        disk_format=kind.disk_format,
        container_format=kind.container_format,
        size=version.size if digests else None,
        virtual_size=_virtual_size(found, digests),
        min_disk=card.min_disk,
        os_hash_algo="sha512" if digests else None,
        os_hash_value=digests.sha512 if digests else None,
        checksum=digests.md5 if digests else None,
        visibility=card.visibility,
        kernel_id=None if card.kernel_id is None else ImageId(card.kernel_id),
        ramdisk_id=None if card.ramdisk_id is None else ImageId(card.ramdisk_id),
    )
    mtime = version.mtime_ns / 1e9
    return FolderImage(
        image=image,
        path=version.path,
        mtime=mtime,
        os_hidden=card.os_hidden,
        signed=card.signed(),
    )


def _virtual_size(found: _Found, digests: _Digests | None) -> int | None:
    kind = found.kind
    if digests is None or kind.container_format != "bare":
        return None
    if kind.disk_format in {"raw", "iso"}:
        return found.version.size
    if kind.disk_format == "qcow2" and digests.head[:4] == b"QFI\xfb":
        return int.from_bytes(digests.head[24:32], "big")
    return None
