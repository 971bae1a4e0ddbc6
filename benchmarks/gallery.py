"""Images for a benchmark: files without holes, compressible by half, as a guest's disk might be."""

from __future__ import annotations

import hashlib
import json
import os
import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.costs import spend
from benchmarks.webserver import SHOW, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
_CLUSTER = 64 << 10
_POOL = 8 * MIB
_HEAD = 64 * MIB
"""Of a sparse image: what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that is offered: its id, its file, its length and its digest."""

    image_id: str
    path: Path
    size: int
    sha512: str


@dataclass(slots=True)
class Gallery:
    """A folder of images; below ``root`` they lie as Glance would show them."""

    folder: Path
    _random: random.Random = field(default_factory=lambda: random.Random(5))  # noqa: S311 -- filler

    @property
    def root(self) -> Path:
        """What a web server has to serve."""
        root = self.folder / "root"
        if not root.is_dir():
            (root / "v2/images").mkdir(parents=True)
            (root / VERSIONS).write_text('{"versions": [{"id": "v2.16"}]}')
        return root

    def raw(self, size: int) -> Path:
        """Make a raw file; none is like another."""
        path = self.folder / f"{uuid.uuid4()}.raw"
        with path.open("wb") as file:
            for block in self._blocks(size):
                file.write(block)
            _settle(file.fileno())
        return path

    def qcow2(self, raw: Path, *, compressed: bool = False) -> Path:
        """Make a qcow2 file of the content of a raw one."""
        path = raw.with_suffix(f".{'c' if compressed else 'u'}.qcow2")
        words = ["-c", "-W", "-m", "8"] if compressed else []
        spend("qemu-img", "convert", *words, "-f", "raw", "-O", "qcow2", raw, path)
        with path.open("rb") as file:
            _settle(file.fileno())
        return path

    def _blocks(self, size: int) -> Iterator[bytes]:
        pool = os.urandom(_POOL)
        text = b"what can be said once more is said once more. ".ljust(64) * (_CLUSTER // 128)
        for _ in range(0, size, _CLUSTER):
            place = self._random.randrange(_POOL - _CLUSTER // 2)
            yield pool[place : place + _CLUSTER // 2] + text

    def offer(self, path: Path, disk_format: str) -> Image:
        """Show a file as an image."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").hexdigest()
        return self._show(path, disk_format, digest)

    def sparse(self, size: int, number: int) -> list[Image]:
        """Show so many raw images of one length, holes but for their beginning and their end."""
        head = b"".join(self._blocks(min(_HEAD, size // 2)))
        state = hashlib.sha512(head)
        zeros = bytes(4 * MIB)
        for left in range(size - len(head) - MIB, 0, -len(zeros)):
            state.update(zeros[: min(left, len(zeros))])
        return [self._sparse(head, state.copy(), size) for _ in range(number)]

    def _sparse(self, head: bytes, state: hashlib._Hash, size: int) -> Image:
        path = self.folder / f"{uuid.uuid4()}.raw"
        end = os.urandom(MIB)
        with path.open("wb") as file:
            file.write(head)
            file.seek(size - MIB)
            file.write(end)
            _settle(file.fileno())
        state.update(end)
        return self._show(path, "raw", state.hexdigest())

    def _show(self, path: Path, disk_format: str, digest: str) -> Image:
        image_id = str(uuid.uuid4())
        place = self.root / "v2/images" / image_id
        place.mkdir()
        (place / "file").hardlink_to(path)
        size = path.stat().st_size
        shown = {
            "id": image_id,
            "name": path.name,
            "status": "active",
            "visibility": "public",
            "disk_format": disk_format,
            "container_format": "bare",
            "size": size,
            "os_hash_algo": "sha512",
            "os_hash_value": digest,
        }
        (place / SHOW).write_text(json.dumps(shown))
        return Image(image_id=image_id, path=path, size=size, sha512=digest)


def _settle(fd: int) -> None:
    """Write out what was made, so that nobody who is measured later has to."""
    os.fsync(fd)
