"""Identifiers and digests: parsed before they meet a path.

Parsers raise ``ValueError`` with a sentence for whoever sent the text.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import NewType

ImageId = NewType("ImageId", str)
InstanceId = NewType("InstanceId", str)
DiskName = NewType("DiskName", str)
BaseId = NewType("BaseId", str)

DISK_NAME_PATTERN = r"[a-z][a-z0-9_-]{0,31}"
UUID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Algorithms that may name a base, with the length of their digest in hex digits."""


def _parse_uuid(text: str) -> str:
    if not re.fullmatch(UUID_PATTERN, text):
        raise ValueError("is not a UUID in its canonical form (lower case, with hyphens)")
    return str(uuid.UUID(text))


def parse_image_id(text: str) -> ImageId:
    """Take ``text`` as the id of an image; ``ValueError`` unless it is a canonical UUID."""
    return ImageId(_parse_uuid(text))


def parse_instance_id(text: str) -> InstanceId:
    """Take ``text`` as the id of an instance; ``ValueError`` unless it is a canonical UUID."""
    return InstanceId(_parse_uuid(text))


def parse_disk_name(text: str) -> DiskName:
    """Take ``text`` as the name of a disk; ``ValueError`` unless it fits the closed pattern."""
    if not re.fullmatch(DISK_NAME_PATTERN, text):
        raise ValueError(f"does not match {DISK_NAME_PATTERN}")
    return DiskName(text)


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest: the name of its algorithm as hashlib knows it, and lower-case hex digits."""

    algorithm: str
    hex: str

    @property
    def base_id(self) -> BaseId:
        """The content address that this digest gives."""
        return BaseId(f"{self.algorithm}-{self.hex}")


def parse_base_id(text: str) -> Digest:
    """Take ``<algorithm>-<hex>`` apart; ``ValueError`` unless algorithm and length are known."""
    algorithm, _, digits = text.partition("-")
    length = DIGEST_LENGTHS.get(algorithm)
    if length is None or not re.fullmatch(f"[0-9a-f]{{{length}}}", digits):
        raise ValueError(f"{text!r} is not <algorithm>-<hex digest>")
    return Digest(algorithm, digits)
