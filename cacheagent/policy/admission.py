"""May this image come in, as what, and into how much room: rules without any I/O.

An image is looked at twice before a byte of it can become a base. ``admit_description`` judges
what Glance says, before the download; ``admit_content`` judges what the bytes turned out to be,
against what Glance said. ``admit_opened`` judges what qemu-img says after opening the file with
the format that ``admit_content`` returned, and so catches what the first look had missed.

Each refusal is an ``ImageUnacceptableError`` with one of these reasons:

==========================  ==================================================================
reason                      the rule that is broken
==========================  ==================================================================
disk-format-unknown         Glance names a ``disk_format``, and one that is known here
disk-format-not-allowed     ``images.allowed_formats`` has it
container-format            the container is one of ``policy.containers``, and fits the format
size-unknown                Glance says how long the image is
empty                       it is not empty
too-large                   it is not longer than ``images.max_size``
virtual-size                its disk is not larger than ``images.max_virtual_size``
no-digest                   Glance holds a digest or an MD5 checksum
unknown-digest-algorithm    the only digest is of an algorithm that a base can be named by
malformed-digest            the digest has the length and the digits of its algorithm
archive                     the tar archive of an OVA is plain, and whole
ovf                         its descriptor describes one disk, which is there and as it says
manifest                    its files have the digests that its manifest states
compression                 a compressed image is one sound stream, of a kind that is known
nested-container            what was unpacked is no container again
boot-image                  what an AMI names as its kernel is an aki, as its ramdisk an ari
format-mismatch             the content is what ``disk_format`` says (CVE-2024-40767)
format-ambiguous            and nothing else at the same time
backing-file                it names no backing or parent file (CVE-2015-5163, CVE-2024-32498)
data-file                   it names no external data file (CVE-2024-32498)
unknown-features            it is of a known qcow2 version and uses known features only
encrypted                   it is not encrypted
corrupt                     it is not marked corrupt
header                      the fields of its header are in their range
truncated                   its tables, and what they lead to, end before the file does
descriptor                  its VMDK descriptor is plain, with one extent (CVE-2022-47951)
text-descriptor             it is not a mere VMDK descriptor, which names other files
footer                      the footer of a VMDK agrees with its header, and has a capacity
banned                      the format is one that can be checked
incomplete                  the file is long enough for its own header
inspector-failed            the inspector of its format understood it
virtual-size-unknown        its header tells the size of its disk
nested-format               the disk in it is not itself an image of another format
conversion                  ``qemu-img`` finds it sound, and can convert it
limits                      with the CPU time and the memory of ``[qemu]`` (CVE-2015-5162)
signature-missing           where ``images.verify_signatures`` asks for it: it is signed
signature-certificate       by a key whose certificate is known, valid now, and trusted
signature-invalid           and the signature holds for all its bytes
==========================  ==================================================================

Those from ``backing-file`` to ``virtual-size-unknown`` are rules that ``Failure.rule`` names; a
later oslo.utils may add more of them. ``conversion`` and ``limits`` are raised by who runs
qemu-img, the last three by who checks signatures.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cacheagent.errors import ImageNotActiveError, ImageUnacceptableError
from cacheagent.model import DIGEST_LENGTHS, DiskFormat
from cacheagent.policy.containers import admit_container, source_names
from cacheagent.policy.sizing import whole_sectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheagent.model import GlanceImage

_MD5_LENGTH = 32


class BaseFormat(enum.StrEnum):
    """What a base is made of: always raw, or raw and qcow2 as they came."""

    RAW = "raw"
    KEEP = "keep"


class SourceFormat(enum.StrEnum):
    """What an image really is, in QEMU's names: ``qemu-img -f`` takes the value."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VPC = "vpc"
    VHDX = "vhdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRules:
    """The bounds that the operator set; sizes are bytes."""

    base_format: BaseFormat
    allowed_formats: frozenset[str]
    max_size: int
    max_virtual_size: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A safety rule that the content breaks.

    ``format`` is the format whose rule it is, ``rule`` its name in lower case with hyphens.
    """

    format: str
    rule: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an inspection of all the bytes found.

    ``formats`` are all formats that the content can be taken for: ``qcow2``, ``vmdk``, ``vdi``,
    ``vhd``, ``vhd-fixed`` (raw data and a VHD footer), ``vhdx``, ``iso``, ``gpt`` (which is also
    said of an MBR), some more that are never accepted, or ``raw`` alone. ``virtual_size`` is an
    upper bound where a header states several sizes.
    """

    formats: frozenset[str]
    length: int
    virtual_size: int
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    """What may be found where Glance says a ``disk_format``.

    One of ``required`` must be there, and nothing outside of ``allowed``.
    """

    required: frozenset[str]
    allowed: frozenset[str]
    source: SourceFormat


# Plain bytes to QEMU, whatever a guest sees in them. A hybrid ISO carries a partition table, and
# a fixed VHD is a raw disk with 512 bytes of footer.
_PLAIN = frozenset({"raw", "gpt", "iso", "vhd-fixed"})


def _plain(*required: str) -> _Declared:
    return _Declared(
        required=frozenset(required) or _PLAIN,
        allowed=frozenset({*required, "gpt"}) if required else _PLAIN,
        source=SourceFormat.RAW,
    )


def _single(name: str) -> _Declared:
    return _Declared(
        required=frozenset({name}), allowed=frozenset({name}), source=SourceFormat(name)
    )


_DECLARED: Final[Mapping[str, _Declared]] = {
    "raw": _plain(),
    "ami": _plain(),
    "aki": _plain(),
    "ari": _plain(),
    "iso": _plain("iso"),
    "qcow2": _single("qcow2"),
    "vmdk": _single("vmdk"),
    "vdi": _single("vdi"),
    "vhdx": _single("vhdx"),
    "vhd": _Declared(
        required=frozenset({"vhd", "vhd-fixed"}),
        allowed=frozenset({"vhd", "vhd-fixed", "gpt", "iso"}),
        source=SourceFormat.VPC,
    ),
}

# A partition table is read by the guest and by nobody on this host, so an odd one endangers
# nobody: boot sectors, file systems without partitions and kernels (aki) look like broken ones.
_HARMLESS = frozenset({"gpt"})


def admit_description(image: GlanceImage, rules: ImageRules) -> None:
    """Judge an image by what Glance says of it, before any byte is asked for.

    Raises: ImageNotActiveError, and ImageUnacceptableError with the reasons from
    ``disk-format-unknown`` to ``malformed-digest``.
    """
    if image.status != "active":
        raise ImageNotActiveError(image.image_id, image.status)
    _declared(image)
    if image.disk_format not in rules.allowed_formats:
        raise ImageUnacceptableError(
            "disk-format-not-allowed", f"images of format {image.disk_format} are not allowed here"
        )
    admit_container(image)
    _check_size(image, rules)
    _check_digest(image)


def admit_content(image: GlanceImage, found: Found, rules: ImageRules) -> SourceFormat:
    """Judge an image by all its bytes, and say as what qemu-img has to open it.

    Raises: ImageUnacceptableError with any reason from ``format-mismatch`` on, with
    ``virtual-size`` or with ``disk-format-unknown``.
    """
    declared = _declared(image)
    _check_formats(image, found, declared)
    # Before its tables: they are too short or too long for a size that cannot be.
    admit_virtual_size(found.virtual_size, rules)
    for failure in found.failures:
        if failure.format not in _HARMLESS:
            raise ImageUnacceptableError(
                failure.rule, f"the {failure.format} image is refused: {failure.message}"
            )
    return declared.source


def admit_inside(formats: frozenset[str]) -> None:
    """Judge the disk of an image that was converted, by the formats that its ends tell of.

    It is judged as a raw image is: whoever looks for its format would take it for another one,
    and open what that names.

    Raises: ImageUnacceptableError with ``nested-format``.
    """
    if foreign := formats - _PLAIN:
        seen = " and ".join(sorted(foreign))
        raise ImageUnacceptableError("nested-format", f"the disk in the image is itself {seen}")


def admit_opened(
    *,
    virtual_size: int,
    backing_file: str | None,
    data_file: str | None,
    encrypted: bool,
    corrupt: bool,
    rules: ImageRules,
) -> None:
    """Judge an image by what ``qemu-img info`` says of it: the second look, by other eyes.

    Raises: ImageUnacceptableError with ``backing-file``, ``data-file``, ``encrypted``,
    ``corrupt`` or ``virtual-size``.
    """
    if backing_file is not None:
        raise ImageUnacceptableError("backing-file", "the image names a backing file")
    if data_file is not None:
        raise ImageUnacceptableError("data-file", "the image names an external data file")
    if encrypted:
        raise ImageUnacceptableError("encrypted", "the image is encrypted")
    if corrupt:
        raise ImageUnacceptableError("corrupt", "the image is marked corrupt")
    admit_virtual_size(virtual_size, rules)


def admit_alias(
    image: GlanceImage, source_format: str, virtual_size: int, rules: ImageRules
) -> None:
    """Judge an image whose content is here already, as a base that came as ``source_format``.

    That is what ``containers.source_name`` gives: the same bytes are another disk where Glance
    says another container, or another format, of them.

    Raises: ImageUnacceptableError with ``format-mismatch``, ``virtual-size`` or
    ``disk-format-unknown``.
    """
    if source_format not in source_names(image, _declared(image).source):
        raise ImageUnacceptableError(
            "format-mismatch",
            f"Glance says that the image is {image.disk_format} in {image.container_format}; a base"
            f" of equal bytes is here as {source_format}, which is another disk",
        )
    admit_virtual_size(virtual_size, rules)


def admit_virtual_size(virtual_size: int, rules: ImageRules) -> None:
    """Refuse a disk that is larger than the operator allows.

    Raises: ImageUnacceptableError with ``virtual-size``.
    """
    if virtual_size > rules.max_virtual_size:
        raise ImageUnacceptableError(
            "virtual-size",
            f"the disk has {virtual_size} bytes, and the rule virtual-size allows"
            f" {rules.max_virtual_size}: images.max_virtual_size, or what its own header says",
        )


def as_inspected(rules: ImageRules, virtual_size: int) -> ImageRules:
    """Let a later look find no larger disk than the inspection: for that much there is room.

    A sector more is a disk that QEMU rounds up.
    """
    return replace(rules, max_virtual_size=min(rules.max_virtual_size, whole_sectors(virtual_size)))


def target_format(source_format: SourceFormat, rules: ImageRules) -> DiskFormat:
    """Give the format of the base that an image of ``source_format`` becomes."""
    if rules.base_format is BaseFormat.KEEP and source_format is SourceFormat.QCOW2:
        return DiskFormat.QCOW2
    return DiskFormat.RAW


def needs_conversion(source_format: SourceFormat, rules: ImageRules) -> bool:
    """Tell whether the bytes as downloaded are not yet those of the base."""
    return source_format.value != target_format(source_format, rules).value


def conversion_room(source_format: SourceFormat, virtual_size: int, rules: ImageRules) -> int:
    """Give the bytes that a conversion writes at worst, beside the download; 0 without one."""
    return virtual_size if needs_conversion(source_format, rules) else 0


def room_needed(image: GlanceImage, rules: ImageRules) -> int:
    """Give the bytes to reserve before the download: its own, and those of the conversion.

    Where Glance does not know the virtual size, the conversion is left out; ``conversion_room``
    tells it as soon as the bytes were inspected. Raises what ``admit_description`` raises for
    an unknown format.
    """
    source = _declared(image).source
    return (image.size or 0) + conversion_room(source, image.virtual_size or 0, rules)


def _declared(image: GlanceImage) -> _Declared:
    declared = _DECLARED.get(image.disk_format or "")
    if image.disk_format == "ploop":
        raise ImageUnacceptableError(
            "disk-format-unknown",
            "ploop is the disk of a container of OpenVZ; QEMU reads it in part, and nobody here",
        )
    if declared is None:
        raise ImageUnacceptableError(
            "disk-format-unknown", f"disk_format {image.disk_format!r} is not known here"
        )
    return declared


def _check_size(image: GlanceImage, rules: ImageRules) -> None:
    if image.size is None or image.size < 0:
        raise ImageUnacceptableError("size-unknown", "Glance does not say how long the image is")
    if image.size == 0:
        raise ImageUnacceptableError("empty", "the image is empty")
    if image.size > rules.max_size:
        raise ImageUnacceptableError(
            "too-large",
            f"the image has {image.size} bytes, and the rule too-large (images.max_size)"
            f" allows {rules.max_size}",
        )
    admit_virtual_size(image.virtual_size or 0, rules)


def _check_digest(image: GlanceImage) -> None:
    # A digest names a file later on, so its shape is proved here, whoever sent it.
    if image.digest is not None:
        value, length = image.digest.hex, DIGEST_LENGTHS[image.digest.algorithm]
    elif image.checksum:
        value, length = image.checksum, _MD5_LENGTH
    elif image.os_hash_value:
        raise ImageUnacceptableError(
            "unknown-digest-algorithm", f"os_hash_algo {image.os_hash_algo!r} is not known here"
        )
    else:
        raise ImageUnacceptableError("no-digest", "Glance holds no digest of the image")
    if not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
        raise ImageUnacceptableError("malformed-digest", f"{value!r} is not a digest")


def _check_formats(image: GlanceImage, found: Found, declared: _Declared) -> None:
    seen = " and ".join(sorted(found.formats))
    if not found.formats & declared.required:
        raise ImageUnacceptableError(
            "format-mismatch", f"Glance says {image.disk_format}, the content is {seen}"
        )
    if found.formats - declared.allowed:
        raise ImageUnacceptableError(
            "format-ambiguous", f"Glance says {image.disk_format}, the content is {seen} at once"
        )
