"""What a container may be, and how strangers' headers and descriptors are read: never wrongly."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import GlanceImage, ImageId
from cacheagent.policy import archive, containers, ovf
from cacheagent.policy.containers import Compression, Packing
from tests.fakes.containers import COMPRESS, descriptor, manifest, tar

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = ImageId("11111111-1111-4111-8111-111111111111")
VMDK = b"KDMV and so on"
GOOD = tar({"disk.vmdk": VMDK})[: archive.BLOCK]


def image(container: str | None, disk_format: str) -> GlanceImage:
    """Give an image of which Glance says this."""
    return GlanceImage(
        image_id=IMAGE,
        name="",
        status="active",
        disk_format=disk_format,
        container_format=container,
        size=1,
    )


def refusal(work: Callable[[], object]) -> str:
    """Give the reason for which something is refused, or that it is not."""
    try:
        work()
    except ImageUnacceptableError as error:
        return error.reason
    return "fine"


@pytest.mark.parametrize(
    ("container", "disk_format", "expected"),
    [
        ("bare", "raw", "fine"),
        ("bare", "aki", "fine"),
        ("ovf", "qcow2", "fine"),
        ("ova", "vmdk", "fine"),
        ("ova", "raw", "container-format"),
        ("compressed", "qcow2", "fine"),
        ("compressed", "ari", "container-format"),
        ("ami", "ami", "fine"),
        ("ami", "aki", "container-format"),
        ("docker", "raw", "container-format"),
        ("oci", "raw", "container-format"),
        (None, "raw", "container-format"),
    ],
)
def test_what_glance_may_say(container: str | None, disk_format: str, expected: str) -> None:
    """A container has to be known, and to fit what is in it."""
    assert refusal(lambda: containers.admit_container(image(container, disk_format))) == expected


@pytest.mark.parametrize(
    ("container", "disk_format", "head", "expected"),
    [
        ("bare", "raw", GOOD, Packing.PLAIN),
        ("ovf", "raw", GOOD, Packing.PLAIN),
        ("ovf", "vmdk", GOOD, Packing.OVA),
        ("ovf", "vmdk", VMDK, Packing.PLAIN),
        ("ova", "vmdk", VMDK, Packing.OVA),
        ("compressed", "raw", b"", Packing.COMPRESSED),
    ],
)
def test_how_the_disk_lies(
    container: str, disk_format: str, head: bytes, expected: Packing
) -> None:
    """Glance says it, and of ovf the bytes do."""
    said = image(container, disk_format)
    assert containers.packing(said, head) is expected
    assert containers.source_name(expected, "vmdk") in containers.source_names(said, "vmdk")


@pytest.mark.parametrize("how", Compression)
def test_compressions_are_told_by_their_magic(how: Compression) -> None:
    """Each is told by its first bytes, and is refused as what another one holds."""
    head = COMPRESS[how](b"data")
    assert containers.compression(head) is how
    assert refusal(lambda: containers.refuse_nesting(head)) == "nested-container"


@pytest.mark.parametrize("kind", [0x50, 0x5F])
def test_stream_that_begins_with_what_is_to_be_skipped(kind: int) -> None:
    """What pzstd writes is zstd too, although a frame that holds nothing comes first."""
    head = bytes((kind,)) + b"\x2a\x4d\x18\x04\0\0\0skip" + COMPRESS["zstd"](b"data")
    assert containers.compression(head) is Compression.ZSTD
    assert refusal(lambda: containers.refuse_nesting(head)) == "nested-container"


@pytest.mark.parametrize("unit", ["byte * 2^41", "byte * 10^99"])
def test_unit_that_every_disk_fits_into(unit: str) -> None:
    """A capacity that would agree with any disk is none."""
    text = descriptor(VMDK, 1, disk=f'ovf:capacityAllocationUnits="{unit}"')
    assert refusal(lambda: ovf.read_descriptor(text)) == "ovf"


def test_sizes_that_agree() -> None:
    """A capacity in a coarse unit is rounded up to, and no further."""
    said = ovf.read_descriptor(
        descriptor(VMDK, 3, disk='ovf:capacityAllocationUnits="byte * 2^20"')
    )
    sizes = (2 << 20, (2 << 20) + 1, 3 << 20, (3 << 20) + 1)
    assert [said.agrees_with(size) for size in sizes] == [False, True, True, False]


def test_manifest() -> None:
    """Each line tells of one file."""
    data = {"a.ovf": b"a", "disk.vmdk": VMDK}
    expected = {name: ("sha1", hashlib.sha1(each).hexdigest()) for name, each in data.items()}  # noqa: S324 - as OVAs have it
    assert ovf.read_manifest(manifest(data, "SHA1")) == expected


@pytest.mark.parametrize(
    ("kind", "found"),
    [(b"2", "it holds a symbolic link"), (b"!", "something that is no plain file")],
)
def test_what_else_lies_in_an_archive_is_told(kind: bytes, found: str) -> None:
    """The refusal says in words what was found."""
    block = bytearray(GOOD[: archive.BLOCK])
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(ImageUnacceptableError, match=found):
        archive.read_header(bytes(block))


@given(st.binary(max_size=archive.BLOCK), st.integers(0, archive.BLOCK - 1))
def test_any_header(noise: bytes, at: int) -> None:
    """Whatever stands in a header, it is read or refused, and its name is that of a file."""
    block = bytearray((GOOD[:at] + noise + GOOD[at + len(noise) :])[: archive.BLOCK])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)

    def look() -> None:
        header = archive.read_header(bytes(block))
        assert header is None or (header.size >= 0 and "/" not in header.name)

    assert refusal(look) in {"fine", "archive"}


@given(st.binary(max_size=2000))
def test_any_extended_header(noise: bytes) -> None:
    """Whatever an extension says, it ends in a size, in none, or in a refusal."""
    assert refusal(lambda: archive.extended_size(noise)) in {"fine", "archive"}


@given(st.binary(max_size=200), st.integers(0, 600))
def test_any_descriptor(noise: bytes, at: int) -> None:
    """Whatever stands in a descriptor, it is read or refused."""
    text = descriptor(VMDK, 1)
    bent = text[:at] + noise + text[at + len(noise) :]
    assert refusal(lambda: ovf.read_descriptor(bent)) in {"fine", "ovf"}


@given(st.binary(max_size=500))
def test_any_manifest(noise: bytes) -> None:
    """Whatever stands in a manifest, it is read or refused."""
    assert refusal(lambda: ovf.read_manifest(noise)) in {"fine", "manifest"}


@given(st.binary(max_size=containers.HEAD))
def test_any_beginning(noise: bytes) -> None:
    """Whatever a compressed image begins with, it is known or refused."""
    assert refusal(lambda: containers.compression(noise)) in {"fine", "compression"}
