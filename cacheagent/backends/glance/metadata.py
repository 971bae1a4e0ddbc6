"""The JSON that Glance sends, checked: versions and the metadata of an image."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cacheagent.errors import GlanceRefusedError
from cacheagent.model import (
    DIGEST_LENGTHS,
    UUID_PATTERN,
    GlanceImage,
    ImageId,
    ImageSignature,
)

_LARGEST = (1 << 63) - 1  # what SQLite and off_t can hold
_MD5_LENGTH = 32


def _lower_hex(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]+", text.lower(), re.ASCII):
        raise ValueError("is not hexadecimal")
    return text.lower()


_Size = Annotated[int, Field(ge=0, le=_LARGEST)]
_Text = Annotated[str, Field(max_length=255)]
"""As long as a column of Glance's table of images is at most."""
_Hex = Annotated[_Text, AfterValidator(_lower_hex)]
_Property = Annotated[str, Field(max_length=65535)]
"""As long as the value of a property is in Glance's database."""


class _Foreign(BaseModel):
    """Strict about what we use, blind to what we do not: Glance may add members."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Image(_Foreign):
    """An image as ``GET /v2/images/{id}`` shows it; the members without a default must be there."""

    id: _Text
    status: _Text
    disk_format: _Text | None
    container_format: _Text | None
    size: _Size | None
    name: _Text | None = None
    virtual_size: _Size | None = None
    min_disk: Annotated[int, Field(ge=0, le=_LARGEST >> 30)] = 0
    os_hash_algo: _Text | None = None
    os_hash_value: _Hex | None = None
    checksum: _Hex | None = None
    visibility: _Text = "private"
    owner: _Text | None = None
    kernel_id: _Property | None = None
    ramdisk_id: _Property | None = None
    img_signature: _Property | None = None
    img_signature_hash_method: _Text | None = None
    img_signature_key_type: _Text | None = None
    img_signature_certificate_uuid: _Text | None = None

    @property
    def signature(self) -> ImageSignature | None:
        """The signature, where all of its properties are there; some of them are none."""
        value, method = self.img_signature, self.img_signature_hash_method
        key_type, certificate = self.img_signature_key_type, self.img_signature_certificate_uuid
        if not (value and method and key_type and certificate):
            return None
        return ImageSignature(
            value=value, hash_method=method, key_type=key_type, certificate=certificate
        )


_SIGNED = frozenset(name for name in _Image.model_fields if name.startswith("img_signature"))


class _Version(_Foreign):
    id: Annotated[str, Field(max_length=16)]


class _Versions(_Foreign):
    versions: Annotated[list[_Version], Field(max_length=64)]


def parse_image(body: bytes, image_id: ImageId) -> GlanceImage:
    """Take the metadata of the image ``image_id``.

    Raises: ``GlanceRefusedError`` where they are no JSON, lack a member, contradict themselves,
    or are those of another image.
    """
    try:
        seen = _Image.model_validate_json(body)
    except ValidationError as error:
        raise _refused(f"the metadata of image {image_id} cannot be used: {_say(error)}") from error
    if seen.id != image_id:
        raise _refused(f"asked for image {image_id}, got the metadata of {seen.id}")
    lengths = ((seen.os_hash_algo, seen.os_hash_value), ("md5", seen.checksum))
    for algorithm, digits in lengths:
        expected = {"md5": _MD5_LENGTH, **DIGEST_LENGTHS}.get(algorithm or "")
        if digits is not None and expected not in {None, len(digits)}:
            raise _refused(f"image {image_id} has a {algorithm} of {len(digits)} digits")
    members = seen.model_dump(exclude={"id", "name", "kernel_id", "ramdisk_id", *_SIGNED})
    if seen.disk_format == "ami":
        members["kernel_id"] = _boot_id(image_id, seen.kernel_id)
        members["ramdisk_id"] = _boot_id(image_id, seen.ramdisk_id)
    return GlanceImage(image_id=image_id, name=seen.name or "", signature=seen.signature, **members)


def _boot_id(image_id: ImageId, text: str | None) -> ImageId | None:
    """Give the image that an AMI names as its kernel or ramdisk; Nova's ``nokernel`` is none."""
    if text in {None, "", "None", "nokernel"}:
        return None
    if not re.fullmatch(UUID_PATTERN, text := str(text).lower()):
        raise _refused(f"image {image_id} names a kernel or ramdisk that is no image")
    return ImageId(text)


def parse_versions(body: bytes, status: int) -> tuple[str, ...]:
    """Take the ids of the versions of the API, ``v2.18`` and the like.

    Raises: ``GlanceRefusedError`` where this is no list of versions.
    """
    try:
        return tuple(version.id for version in _Versions.model_validate_json(body).versions)
    except ValidationError as error:
        raise _refused(f"no list of API versions: {_say(error)}", status) from error


def _say(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def _refused(message: str, status: int = 200) -> GlanceRefusedError:
    return GlanceRefusedError(message, glance_status=status)
