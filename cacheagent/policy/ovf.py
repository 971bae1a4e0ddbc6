"""The descriptor of an OVA, and its manifest: which file is the disk, and what is said of it.

The descriptor is XML from a stranger. It is read as a stream of elements, without building
anything of it; a document type, which is what entities come with, is refused (no such thing is in
the schema of DSP8023). Elements and attributes are those of DSP0243.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from cacheagent.errors import ImageUnacceptableError

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_DESCRIPTOR: Final = 4 << 20
"""Bytes of an ``.ovf``; licences that are to be agreed to are part of it."""

LONGEST_MANIFEST: Final = 64 << 10
"""Bytes of an ``.mf``: a line for each file."""

_NAMESPACE = "http://schemas.dmtf.org/ovf/envelope/"
_COARSEST = 1 << 40  # A unit that every disk fits into once says nothing of its size.
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^()]+)\)\s*=\s*([0-9a-fA-F]+)")
_LENGTHS = {"sha1": 40, "sha256": 64, "sha512": 128}
_POWER = re.compile(r"byte\s*\*\s*(2|10)\s*\^\s*([0-9]{1,2})")
# Names of CIM (DSP0004, programmatic units) that VMware's tools wrote in OVF 1.0.
_UNITS = {"": 1, "byte": 1, "KiloBytes": 1 << 10, "MegaBytes": 1 << 20, "GigaBytes": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReference:
    """What a descriptor says of its one disk: the file, its length, and the size of the disk.

    ``size`` is None where it is not told. ``capacity`` counts units of ``unit`` bytes.
    """

    name: str
    size: int | None
    capacity: int
    unit: int

    def agrees_with(self, virtual_size: int) -> bool:
        """Tell whether a disk of so many bytes is meant; a coarse unit is rounded up to."""
        return -(-virtual_size // self.unit) == self.capacity


def read_descriptor(text: bytes) -> DiskReference:
    """Find the disk that the descriptor tells of.

    Raises: ImageUnacceptableError with ``ovf``: it is no descriptor, or tells of no disk or of
    several, or of one that lies elsewhere, in pieces or compressed, or upon another.
    """
    reader = _Reader()
    try:
        reader.read(text)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise refused(f"it cannot be read: {error}") from error
    if len(reader.disks) != 1:
        raise refused(f"it describes {len(reader.disks)} disks, and one is what an image has")
    disk = reader.disks[0]
    if "parentRef" in disk:
        raise refused("the disk is a difference to another one")
    files = [each for each in reader.files if each.get("id") == disk.get("fileRef", "")]
    if len(files) != 1:
        raise refused(f"its disk is in {len(files)} files of those that it names")
    return _reference(disk, files[0])


def _reference(disk: Mapping[str, str], file: Mapping[str, str]) -> DiskReference:
    if "chunkSize" in file or file.get("compression", "identity") != "identity":
        raise refused("the file of its disk is compressed, or in pieces")
    unit = _unit(disk.get("capacityAllocationUnits", "").strip())
    capacity = _count(disk.get("capacity", ""), "capacity")
    size = _count(file["size"], "size") if "size" in file else None
    return DiskReference(name=file.get("href", ""), size=size, capacity=capacity, unit=unit)


def read_manifest(text: bytes) -> dict[str, tuple[str, str]]:
    """Give the digests that a manifest states: algorithm and digits, by the names of the files.

    Raises: ImageUnacceptableError with ``manifest``.
    """
    digests: dict[str, tuple[str, str]] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[2] in digests:
            raise ImageUnacceptableError("manifest", "the manifest of the archive cannot be read")
        algorithm, digits = match[1].lower(), match[3].lower()
        if len(digits) != _LENGTHS[algorithm]:
            raise ImageUnacceptableError("manifest", f"{digits[:16]}… is no {algorithm}")
        digests[match[2]] = (algorithm, digits)
    return digests


def refused(message: str) -> ImageUnacceptableError:
    """Give the refusal of a descriptor."""
    return ImageUnacceptableError("ovf", f"the descriptor is refused: {message}")


class _Reader:
    """Notes the attributes of two kinds of elements as they pass by."""

    def __init__(self) -> None:
        self.files: list[dict[str, str]] = []
        self.disks: list[dict[str, str]] = []
        self._places: dict[tuple[str, ...], list[dict[str, str]]] = {
            ("Envelope", "References", "File"): self.files,
            ("Envelope", "DiskSection", "Disk"): self.disks,
        }
        self._path: list[str] = []
        self._namespace = ""

    def read(self, text: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler = _no_document_type
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(text, True)  # noqa: FBT003 - it takes no names

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        namespace, _, name = tag.rpartition(" ")
        if not self._path:
            if name != "Envelope" or not namespace.startswith(_NAMESPACE):
                raise ValueError("it is no OVF envelope")
            self._namespace = namespace
        self._path.append(name if namespace == self._namespace else "")
        if (place := self._places.get(tuple(self._path[:4]))) is not None:
            mine = f"{self._namespace} "
            place.append(
                {key[len(mine) :]: each for key, each in attributes.items() if key.startswith(mine)}
            )

    def _end(self, _tag: str) -> None:
        self._path.pop()


def _no_document_type(*_arguments: object) -> None:
    raise ValueError("it has a document type, and with that perhaps entities")


def _unit(text: str) -> int:
    if text in _UNITS:
        return _UNITS[text]
    match = _POWER.fullmatch(text)
    if match is None:
        raise refused(f"its unit {text[:32]!r} is not known")
    unit = int(match[1]) ** int(match[2])
    if unit > _COARSEST:
        raise refused(f"its unit {text[:32]!r} is larger than a disk")
    return int(unit)


def _count(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text.strip(), re.ASCII):
        raise refused(f"its {what} {text[:32]!r} is no number")
    return int(text)
