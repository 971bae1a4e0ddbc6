"""What a ``container_format`` means: how the disk lies in the image, and as what it is known.

=============  ===============================================================================
container      the disk is
=============  ===============================================================================
``bare``       the image itself
``aki`` …      the image itself; ``ari`` and ``ami`` alike, each with the ``disk_format`` of its
               name (Glance's ``glance/api/v2/images.py`` asks for that)
``ova``        the one VMDK of a tar archive, which its ``.ovf`` describes
``ovf``        that too, or the image itself: Glance's own instructions of old said ``ovf`` of
               plain disks, and Nova does not look
``compressed`` inside of one compressed stream (Cinder's ``image/accelerators/gzip.py`` makes such)
=============  ===============================================================================

Whatever else Glance may say, ``docker`` first of all, is refused before a byte is asked for.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from cacheagent.errors import ImageUnacceptableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheagent.model import GlanceImage


class Packing(enum.StrEnum):
    """How the disk lies in the bytes of the image."""

    PLAIN = "plain"
    OVA = "ova"
    COMPRESSED = "compressed"


class Compression(enum.StrEnum):
    """What undoes the compression of an image."""

    GZIP = "gzip"
    XZ = "xz"
    BZIP2 = "bzip2"
    ZSTD = "zstd"


HEAD: Final = 512
"""How many of the first bytes ``packing`` and ``compression`` want to see."""

_AMAZON = frozenset({"aki", "ari", "ami"})
_KNOWN = frozenset({"bare", "ovf", "ova", "compressed", *_AMAZON})

_MAGIC: Final[Mapping[bytes, Compression]] = {
    b"\x1f\x8b\x08": Compression.GZIP,  # RFC 1952, deflate
    b"\xfd7zXZ\0": Compression.XZ,
    b"BZh": Compression.BZIP2,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,  # RFC 8878
    # A frame that is to be skipped (RFC 8878, 3.1.2): pzstd puts one in front of each of its own.
    **{bytes((each,)) + b"\x2a\x4d\x18": Compression.ZSTD for each in range(0x50, 0x60)},
}
_STRANGE: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"LZIP": "lzip",
    b"\x89LZO\0": "lzop",
    b"\x1f\x9d": "compress",
}
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_PLUS = "+"


def admit_container(image: GlanceImage) -> None:
    """Judge what Glance says of the container.

    Raises: ImageUnacceptableError with ``container-format``.
    """
    container, disk_format = image.container_format, image.disk_format
    if container == "docker":
        raise _refused("docker images are layers of files, and no disks; they are not for guests")
    if container not in _KNOWN:
        raise _refused(f"container_format {container!r} cannot be taken apart here")
    if container in _AMAZON and container != disk_format:
        raise _refused(f"a container {container} holds no disk of format {disk_format}")
    if container == "ova" and disk_format != "vmdk":
        raise _refused(f"the disk in an ova is a vmdk; Glance says {disk_format}")
    if container == "compressed" and disk_format in _AMAZON:
        raise _refused(f"an image of format {disk_format} is in a container of that name")


def packing(image: GlanceImage, head: bytes) -> Packing:
    """Tell how the disk lies in an image that ``admit_container`` let in.

    ``head`` are its first ``HEAD`` bytes.
    """
    if image.container_format == "compressed":
        return Packing.COMPRESSED
    if image.container_format == "ova":
        return Packing.OVA
    is_package = image.container_format == "ovf" and image.disk_format == "vmdk" and _is_tar(head)
    return Packing.OVA if is_package else Packing.PLAIN


def compression(head: bytes) -> Compression:
    """Tell by the first ``HEAD`` bytes how the image is compressed.

    Raises: ImageUnacceptableError with ``compression``.
    """
    for magic, found in _MAGIC.items():
        if head.startswith(magic):
            return found
    for magic, name in _STRANGE.items():
        if head.startswith(magic):
            raise ImageUnacceptableError(
                "compression", f"{name} is not read here; {', '.join(Compression)} are"
            )
    raise ImageUnacceptableError("compression", "the image is not compressed in any known way")


def refuse_nesting(head: bytes) -> None:
    """Refuse what came out of a container and is one again: one is all that is taken apart.

    Raises: ImageUnacceptableError with ``nested-container``.
    """
    layers = [magic for magic in (*_MAGIC, *_STRANGE) if head.startswith(magic)]
    if layers or _is_tar(head):
        raise ImageUnacceptableError(
            "nested-container", "what the image holds is compressed or an archive once more"
        )


def source_name(how: Packing, source_format: str) -> str:
    """Give what ``Base.source_format`` says of a disk of this format that lay so in its image.

    Equal bytes mean another disk where Glance says another container of them. So a base that was
    taken out of one never stands for an image that is the disk itself, nor the other way round.
    """
    return source_format if how is Packing.PLAIN else f"{how}{_PLUS}{source_format}"


def is_unpacked(name: str) -> bool:
    """Tell whether a base of which ``Base.source_format`` says this was taken out of something."""
    return _PLUS in name


def source_names(image: GlanceImage, source_format: str) -> frozenset[str]:
    """Give what ``Base.source_format`` may say of the base of this image.

    Of ``ovf`` the bytes decide, and they are equal where this is asked.
    """
    container = image.container_format
    hows = {"ova": {Packing.OVA}, "compressed": {Packing.COMPRESSED}}.get(container or "")
    if hows is None:
        hows = {Packing.PLAIN}
        if container == "ovf" and image.disk_format == "vmdk":
            hows = {Packing.PLAIN, Packing.OVA}
    return frozenset(source_name(how, source_format) for how in hows)


def _is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


def _refused(message: str) -> ImageUnacceptableError:
    return ImageUnacceptableError("container-format", message)
