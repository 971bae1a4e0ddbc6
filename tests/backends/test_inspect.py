"""What real and hostile images are found to be, and that none of them gets in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_utils.imageutils import format_inspector

from cacheagent.backends.inspect import Inspection
from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import GlanceImage, ImageId
from cacheagent.policy.admission import (
    BaseFormat,
    Found,
    ImageRules,
    SourceFormat,
    admit_content,
)
from tests.fakes import images
from tests.needs import require_programs

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
CONTENT = os.urandom(2 * MIB) + bytes(MIB)
RULES = ImageRules(
    base_format=BaseFormat.RAW,
    allowed_formats=frozenset(),
    max_size=1 << 30,
    max_virtual_size=1 << 40,
)


def inspect(content: bytes, piece: int = 4 * MIB) -> Found:
    """Inspect content that arrives in pieces of this length."""
    inspection = Inspection()
    for position in range(0, len(content), piece):
        inspection.feed(memoryview(content)[position : position + piece])
    return inspection.finish()


def admitted(disk_format: str, content: bytes) -> SourceFormat:
    """Judge the content as that of an image that Glance calls ``disk_format``."""
    image = GlanceImage(
        image_id=ImageId("11111111-2222-3333-4444-555555555555"),
        name="",
        status="active",
        disk_format=disk_format,
        container_format="bare",
        size=len(content),
    )
    return admit_content(image, inspect(content), RULES)


def refused(disk_format: str, content: bytes) -> str:
    """Give the reason for which the content is refused."""
    with pytest.raises(ImageUnacceptableError) as caught:
        admitted(disk_format, content)
    return caught.value.reason


def qemu(tmp_path: Path, image_format: str, options: str = "", content: bytes = CONTENT) -> bytes:
    """Give the bytes of an image that qemu-img makes."""
    require_programs("qemu-img")
    return images.made_by_qemu(tmp_path / "image", image_format, options, content).read_bytes()


@pytest.mark.parametrize(
    ("made_as", "options", "disk_format", "name", "source"),
    [
        ("raw", "", "raw", "raw", SourceFormat.RAW),
        ("qcow2", "compat=0.10", "qcow2", "qcow2", SourceFormat.QCOW2),
        ("qcow2", "compat=1.1,lazy_refcounts=on", "qcow2", "qcow2", SourceFormat.QCOW2),
        ("qcow2", "compression_type=zstd,cluster_size=2M", "qcow2", "qcow2", SourceFormat.QCOW2),
        ("qcow2", "cluster_size=512,refcount_bits=64", "qcow2", "qcow2", SourceFormat.QCOW2),
        ("vmdk", "subformat=monolithicSparse", "vmdk", "vmdk", SourceFormat.VMDK),
        ("vmdk", "subformat=streamOptimized", "vmdk", "vmdk", SourceFormat.VMDK),
        ("vdi", "", "vdi", "vdi", SourceFormat.VDI),
        ("vdi", "static=on", "vdi", "vdi", SourceFormat.VDI),
        ("vpc", "force_size=on", "vhd", "vhd", SourceFormat.VPC),
        ("vpc", "subformat=fixed,force_size=on", "vhd", "vhd-fixed", SourceFormat.VPC),
        ("vhdx", "", "vhdx", "vhdx", SourceFormat.VHDX),
    ],
)
def test_a_real_image_is_what_it_was_made_as(
    tmp_path: Path, made_as: str, options: str, disk_format: str, name: str, source: SourceFormat
) -> None:
    """Every accepted format of qemu-img is found, with its size, in pieces of any length."""
    content = qemu(tmp_path, made_as, options)
    result = inspect(content)
    assert result.formats == {name}
    assert result.failures == ()
    assert result.length == len(content)
    footer = 512 if name == "vhd-fixed" else 0
    assert result.virtual_size == len(CONTENT) + footer
    assert admitted(disk_format, content) is source
    for piece in (100_000, MIB, MIB + 1):
        assert inspect(content, piece) == result


@pytest.mark.parametrize(
    ("disk_format", "content", "formats"),
    [
        ("raw", images.mbr() + bytes(MIB), {"gpt"}),
        ("raw", images.mbr(kind=0xEE) + bytes(MIB), {"gpt"}),
        ("aki", bytes(510) + b"\x55\xaa" + os.urandom(MIB), {"gpt"}),
        ("iso", images.iso(), {"iso"}),
        ("iso", images.iso(start=images.mbr()), {"iso", "gpt"}),
        ("raw", images.iso(), {"iso"}),
        ("ari", b"\x1f\x8b" + os.urandom(1000), {"raw"}),
        ("raw", b"#!/bin/sh\n" * 60 + os.urandom(1000), {"raw"}),
        ("raw", b"x", {"raw"}),
    ],
)
def test_plain_content_is_opened_as_raw(
    disk_format: str, content: bytes, formats: set[str]
) -> None:
    """Disks with partitions, ISO images and kernels are bytes to QEMU, of the file's length."""
    result = inspect(content, 777)
    assert result.formats == formats
    assert result.virtual_size == len(content)
    assert admitted(disk_format, content) is SourceFormat.RAW


def test_nothing_at_all_is_raw() -> None:
    """An empty download is not an error of the inspection."""
    assert Inspection().finish() == Found(
        formats=frozenset({"raw"}), length=0, virtual_size=0, failures=()
    )


@pytest.mark.parametrize("disk_format", ["raw", "ami", "iso", "vmdk"])
def test_a_qcow2_that_claims_to_be_something_else_is_refused(
    tmp_path: Path, disk_format: str
) -> None:
    """CVE-2024-40767: what Glance says does not make a qcow2 a raw disk."""
    assert refused(disk_format, qemu(tmp_path, "qcow2")) == "format-mismatch"


def test_a_qcow2_with_a_backing_file_is_refused(tmp_path: Path) -> None:
    """CVE-2015-5163: the image would show a file of this host to its guest."""
    require_programs("qemu-img")
    (tmp_path / "base").write_bytes(CONTENT)
    path = tmp_path / "image"
    images.qemu_img("create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", path)
    assert refused("qcow2", path.read_bytes()) == "backing-file"


def test_a_qcow2_with_a_data_file_is_refused(tmp_path: Path) -> None:
    """CVE-2024-32498: its data would be those of a file of this host."""
    require_programs("qemu-img")
    path = tmp_path / "image"
    images.qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, "1M")
    assert refused("qcow2", path.read_bytes()) == "data-file"


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("unknown-features", images.qcow2(incompatible=1 << 63)),
        ("unknown-features", images.qcow2(version=1)),
        ("encrypted", images.qcow2(encryption=1)),
        ("corrupt", images.qcow2(incompatible=2)),
        ("virtual-size", images.qcow2(size=8000 << 40)),
        ("virtual-size-unknown", images.qcow2(size=0)),
        ("truncated", images.qcow2()[:1000]),
        ("truncated", images.qcow2()[:100]),
        ("format-mismatch", images.qcow2()[:3]),
        ("format-ambiguous", images.qcow2()[:32768] + images.iso()[32768:]),
    ],
)
def test_a_hostile_qcow2_is_refused_with_the_rule_it_breaks(reason: str, content: bytes) -> None:
    """Each trick with the header has its own answer, before any qemu-img sees the file."""
    assert refused("qcow2", content) == reason


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_a_vmdk_that_only_names_other_files_is_refused(tmp_path: Path, subformat: str) -> None:
    """CVE-2022-47951: such a descriptor has QEMU open what it names."""
    descriptor = qemu(tmp_path, "vmdk", f"subformat={subformat}")
    assert refused("vmdk", descriptor) == "text-descriptor"
    assert refused("raw", descriptor) == "format-mismatch"
    padded = descriptor.ljust(MIB, b"\0")
    assert refused("raw", padded) == "format-mismatch"
    assert refused("iso", padded[:32768] + images.iso()[32768:]) == "format-ambiguous"


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("backing-file", images.vmdk(images.vmdk_descriptor(parent="12345678"))),
        ("descriptor", images.vmdk(images.vmdk_descriptor("monolithicFlat"))),
        ("descriptor", images.vmdk(images.vmdk_descriptor(extents=('RW 1 FLAT "/etc/x" 0',)))),
        ("descriptor", images.vmdk(b"")),
        ("virtual-size", images.vmdk(images.vmdk_descriptor(), capacity=1 << 40)),
        ("footer", images.vmdk(images.vmdk_descriptor(), footer_capacity=2048)[:-1]),
        ("truncated", images.vmdk(images.vmdk_descriptor())[:1000]),
        ("virtual-size", images.vmdk(images.vmdk_descriptor(), footer_capacity=1 << 40)),
        ("header", b"KDMV" + b"\xff" * 4096 + b"\0"),
    ],
)
def test_a_hostile_vmdk_is_refused(reason: str, content: bytes) -> None:
    """Parents, foreign extents and broken structures do not get to qemu-img."""
    assert refused("vmdk", content) == reason


def test_a_vmdk_that_would_have_qemu_open_a_file_of_this_host_is_refused() -> None:
    """Without a capacity in its header QEMU opens the extent, which oslo.utils takes for a field.

    The footer lends it a size, and the comment is the type that QEMU reads.
    """
    descriptor = images.vmdk_descriptor(
        "monolithicSparse",
        extents=('\x1cRW 100 SPARSE "x.vmdk"', 'RW\t100\tFLAT\t"/etc/passwd"\t0\t='),
    ).replace(b"version=1", b'# createType: monolithicFlat"\nversion=1')
    footer = images.vmdk(b"", footer_capacity=100)[-1536:]
    assert refused("vmdk", images.vmdk(descriptor, capacity=0) + footer) == "header"
    assert refused("vmdk", images.vmdk(descriptor)) == "descriptor"


def test_a_text_descriptor_is_refused_however_it_begins() -> None:
    """QEMU reads it where it is told the format, and a foreign footer lends it no size."""
    text = images.vmdk_descriptor("monolithicSparse").replace(b"# Disk DescriptorFile\n", b"")
    text += b"# " + b" " * 512 + b"\n"
    content = text.ljust(2 * MIB, b"\0") + images.vhd_footer(MIB, kind=3)
    assert text.startswith(b"version=1"), "as QEMU begins one itself"
    assert refused("vmdk", content) == "text-descriptor"
    other_start = content.replace(b"version=1\nCID=12345678\n", b"CID=12345678\nversion=1\n")
    assert inspect(other_start).virtual_size == 0
    assert refused("vmdk", other_start) == "text-descriptor"


@pytest.mark.parametrize("disk_format", ["vdi", "vhd", "vhdx", "qcow2", "vmdk", "iso"])
def test_what_is_not_there_is_not_believed(disk_format: str) -> None:
    """Content without the format that Glance says is refused, and not opened as raw."""
    assert refused(disk_format, bytes(MIB)) == "format-mismatch"


def test_a_vhdx_without_its_metadata_is_refused(tmp_path: Path) -> None:
    """A file cut off before its size can be known says nothing that can be believed."""
    assert refused("vhdx", qemu(tmp_path, "vhdx")[: 2 * MIB]) in {
        "incomplete",
        "inspector-failed",
        "virtual-size-unknown",
    }


def test_a_crash_of_the_library_is_a_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inspector that fails on what it takes for its own format condemns the content."""

    def crash(_self: object, *_arguments: object) -> NoReturn:
        raise ZeroDivisionError("in the library")

    with monkeypatch.context() as context:
        context.setattr(format_inspector.FileInspector, "safety_check", crash)
        assert refused("qcow2", images.qcow2()) == "inspector-failed"
    with monkeypatch.context() as context:
        context.setattr(format_inspector.QcowInspector, "post_process", crash)
        assert refused("qcow2", images.qcow2()) == "inspector-failed"
    with monkeypatch.context() as context:
        context.setattr(format_inspector.QcowInspector, "virtual_size", property(crash))
        assert refused("qcow2", images.qcow2()) == "virtual-size-unknown"


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(
        [
            b"",
            images.qcow2()[:600],
            images.vmdk(images.vmdk_descriptor())[:3000],
            images.vmdk_descriptor(),
            images.vhd_footer(MIB),
            b"vhdxfile",
            images.mbr(),
            b"LUKS\xba\xbe\0\1",
        ]
    ),
    noise=st.binary(max_size=600),
    position=st.integers(0, 700),
    piece=st.integers(1, 5000),
)
def test_no_bytes_make_the_inspection_fail(
    start: bytes, noise: bytes, position: int, piece: int
) -> None:
    """Whatever comes, the inspection ends with a verdict, the same for any length of pieces."""
    content = start[:position] + noise + start[position + len(noise) :]
    result = inspect(content, piece)
    assert result.length == len(content)
    assert result == inspect(content)
