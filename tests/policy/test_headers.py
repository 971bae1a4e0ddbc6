"""What stands in the headers of hostile images, beyond what oslo.utils looks at."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.policy.headers import HEAD_LENGTH, TAIL_LENGTH, Seen, examine, wanted
from tests.fakes import images


def seen(content: bytes) -> Seen:
    """Examine content that is all there."""
    return examine(content[:HEAD_LENGTH], content[-TAIL_LENGTH:], len(content))


def rules(content: bytes) -> set[str]:
    """Give the names of the rules that the content breaks."""
    return {failure.rule for failure in seen(content).failures}


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_qcow2_header_breaks_no_rule(version: int) -> None:
    """Both versions of the header that are in use are understood."""
    assert seen(images.qcow2(version=version)) == Seen(
        formats=frozenset({"qcow2"}), failures=(), virtual_size=0
    )


@pytest.mark.parametrize(
    ("rule", "content"),
    [
        ("backing-file", images.qcow2(backing_offset=512)),
        ("encrypted", images.qcow2(encryption=2)),
        ("corrupt", images.qcow2(incompatible=2)),
        ("header", images.qcow2(cluster_bits=8)),
        ("header", images.qcow2(cluster_bits=2**32 - 1)),
        ("header", images.qcow2(refcount_order=7)),
        ("header", images.qcow2(l1=(1, 0))),
        ("header", images.qcow2(l1=(1, 100))),
        ("header", images.qcow2(refcount=(0, 1))),
        ("truncated", images.qcow2(l1=(2**32 - 1, images.CLUSTER))),
        ("truncated", images.qcow2(refcount=(images.CLUSTER, 4))),
        ("truncated", images.qcow2()[:60]),
        ("truncated", images.qcow2()[:80]),
        ("truncated", images.qcow2()[: images.CLUSTER]),
    ],
)
def test_a_qcow2_header_that_breaks_a_rule_names_it(rule: str, content: bytes) -> None:
    """Fields that lead QEMU astray or out of the file are seen before QEMU is."""
    assert rules(content) == {rule}


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"conectix", "vhd"),
        (b"vhdxfile", "vhdx"),
        (b"QED\0", "qed"),
        (b"LUKS\xba\xbe", "luks"),
        (b"WithoutFreeSpace", "parallels"),
        (b"WithouFreSpacExt", "parallels"),
    ],
)
def test_a_magic_tells_a_format_however_little_follows(magic: bytes, name: str) -> None:
    """A file that is too short for its format is not taken for plain bytes."""
    assert seen(magic).formats == {name}


@pytest.mark.parametrize(
    "descriptor",
    [
        images.vmdk_descriptor(),
        images.vmdk_descriptor("monolithicSparse").replace(b"\n", b" \r\n"),
        images.vmdk_descriptor(extents=('RDONLY 2048 SPARSE "call-me-stream.vmdk"',)),
    ],
)
@pytest.mark.parametrize("footer_capacity", [None, 2048])
def test_a_sound_vmdk_breaks_no_rule(descriptor: bytes, footer_capacity: int | None) -> None:
    """A descriptor with one extent and no parent, as QEMU and VMware write it, is let pass."""
    assert rules(images.vmdk(descriptor, footer_capacity=footer_capacity)) == set()


@pytest.mark.parametrize(
    ("rule", "descriptor"),
    [
        ("backing-file", images.vmdk_descriptor(parent="12345678")),
        ("backing-file", images.vmdk_descriptor(more='parentFileNameHint="/etc/passwd"')),
        ("backing-file", images.vmdk_descriptor(more='PARENTFILENAMEHINT="x"')),
        ("descriptor", images.vmdk_descriptor(extents=())),
        ("descriptor", images.vmdk_descriptor(extents=('RW 1 SPARSE "a"', 'RW 1 FLAT "b"'))),
        ("descriptor", images.vmdk_descriptor(extents=('RW\t1\tFLAT\t"/etc/passwd"\t0\t=',))),
        ("descriptor", images.vmdk_descriptor(extents=('RW 1 SPARSE "/etc/passwd"',))),
        ("descriptor", images.vmdk_descriptor(extents=('RW 1 SPARSE "a" 0',))),
        ("descriptor", images.vmdk_descriptor(extents=("RW", '1 FLAT "a" 0'))),
        ("descriptor", images.vmdk_descriptor(more='\rRW 1 FLAT "a" 0')),
        ("descriptor", images.vmdk_descriptor(extents=('\x1cRW 1 SPARSE "a"',))),
        ("descriptor", images.vmdk_descriptor(more="\x1c")),
        ("descriptor", images.vmdk_descriptor(more="ä")),
        ("descriptor", images.vmdk_descriptor("monolithicFlat")),
        ("descriptor", images.vmdk_descriptor(more='# createType: monolithicFlat"')),
        ("descriptor", images.vmdk_descriptor().replace(b'createType="', b'createType ="')),
    ],
)
def test_a_vmdk_that_names_other_files_is_seen(rule: str, descriptor: bytes) -> None:
    """A parent or a second extent would have QEMU open a file of this host."""
    assert rules(images.vmdk(descriptor)) == {rule}


def test_a_descriptor_without_an_end_is_not_trusted() -> None:
    """What QEMU would read beyond the part that was looked at cannot be judged."""
    descriptor = images.vmdk_descriptor(more="# " + "x" * (2 * HEAD_LENGTH))
    assert "descriptor" in rules(images.vmdk(descriptor))


def test_a_vmdk_without_a_capacity_is_not_given_to_qemu() -> None:
    """QEMU takes its descriptor for one of other files, and opens those."""
    assert rules(images.vmdk(images.vmdk_descriptor(), capacity=0)) == {"header"}


def test_the_footer_of_a_vmdk_counts_as_its_header_does() -> None:
    """QEMU believes the footer, so a larger disk there is the size that is limited."""
    content = images.vmdk(images.vmdk_descriptor(), footer_capacity=1 << 40)
    assert seen(content).virtual_size == 512 << 40


def test_a_footer_that_no_header_speaks_of_is_none() -> None:
    """What merely looks like a footer does not lend its capacity to a header that has none."""
    unspoken = images.vmdk(images.vmdk_descriptor(), footer_capacity=2048)[-1536:]
    content = images.vmdk(images.vmdk_descriptor(), capacity=0) + unspoken
    assert seen(content).virtual_size == 0
    assert rules(content) == {"header"}


@pytest.mark.parametrize(
    "content",
    [
        images.vmdk(images.vmdk_descriptor(), footer_capacity=0),
        images.vmdk(images.vmdk_descriptor(), footer_capacity=2048)[:-512],
        images.vmdk(images.vmdk_descriptor(), footer_capacity=2048) + b"\0",
    ],
)
def test_a_footer_that_qemu_would_read_otherwise_is_refused(content: bytes) -> None:
    """Without a capacity, not there, or where QEMU would look in another place."""
    assert rules(content) == {"footer"}


@pytest.mark.parametrize(
    "content",
    [
        images.vmdk_descriptor("monolithicFlat"),
        images.vmdk_descriptor("monolithicFlat") + bytes(4096),
        b"\n  # disk descriptorfile\n",
        b"# any comment\r\n \r\n\nversion=3\r\n",
        b"version=1\n",
    ],
)
def test_a_text_descriptor_is_no_raw_disk(content: bytes) -> None:
    """A text that QEMU takes for a VMDK is refused, also with NUL bytes behind it."""
    assert seen(content).formats == {"vmdk"}
    assert rules(content) == {"text-descriptor"}


@pytest.mark.parametrize("content", [b"", b"# a script\necho version=1\n", b"version=4\n"])
def test_other_text_is_just_bytes(content: bytes) -> None:
    """Nothing is said of content that only looks a little like a descriptor."""
    assert seen(content) == Seen(formats=frozenset(), failures=(), virtual_size=0)


def test_a_fixed_vhd_is_known_by_its_footer() -> None:
    """A raw disk with a VHD footer behind it is told apart, with the size that it states."""
    result = seen(bytes(1 << 20) + images.vhd_footer(1 << 20))
    assert result.formats == {"vhd-fixed"}
    assert result.virtual_size == 1 << 20


@pytest.mark.parametrize(
    ("header_at", "entries"), [(2 << 20, 1), (512, 9 << 20)], ids=["far away", "huge table"]
)
def test_a_vhd_whose_tables_no_writer_puts_there_is_refused(header_at: int, entries: int) -> None:
    """Its header stands at the beginning, and its table is not larger than QEMU would read."""
    footer = images.vhd_footer(1 << 20, kind=3)
    head = footer[:16] + struct.pack(">Q", header_at) + footer[24:]
    dynamic = struct.pack(">8sQQIII", b"cxsparse", 2**64 - 1, 1536, 1 << 16, entries, 1 << 21)
    content = head + dynamic.ljust(HEAD_LENGTH - len(head), b"\0")
    found = examine(content, footer, 64 << 20)
    assert [failure.rule for failure in found.failures] == ["header"]


def test_a_dynamic_vhd_has_the_largest_size_that_it_states() -> None:
    """QEMU takes one of three sizes, depending on who made the file; the largest is limited."""
    footer = images.vhd_footer(1 << 20, kind=3, current=1 << 50)
    result = seen(footer + bytes(1 << 20) + images.vhd_footer(1, kind=3))
    assert result.formats == {"vhd"}
    assert result.virtual_size == 1 << 50


def test_the_geometry_of_a_vhd_is_a_size_as_well() -> None:
    """Cylinders, heads and sectors count, unless they say that the disk is larger than they can."""
    footer = bytearray(images.vhd_footer(512, kind=3))
    footer[56:60] = struct.pack(">HBB", 1000, 16, 63)
    assert seen(bytes(footer)).virtual_size == 1000 * 16 * 63 * 512
    footer[56:60] = struct.pack(">HBB", 65535, 16, 255)
    assert seen(bytes(footer)).virtual_size == 512


def test_a_footer_of_another_kind_makes_no_fixed_vhd() -> None:
    """The end of a dynamic VHD behind other content is no disk of its own, and lends no size."""
    result = seen(bytes(1024) + images.vhd_footer(1 << 20, kind=3))
    assert result == Seen(formats=frozenset(), failures=(), virtual_size=0)


@given(
    start=st.sampled_from([b"", b"QFI\xfb", b"KDMV", b"COWD", b"conectix", b"# ", b"version=1\n"]),
    rest=st.binary(max_size=2048),
)
def test_no_bytes_make_it_fail(start: bytes, rest: bytes) -> None:
    """Whatever stands behind a magic, the answer is a value and not an error."""
    result = seen(start + rest)
    assert result.virtual_size >= 0
    assert {failure.format for failure in result.failures} <= result.formats


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (64 << 10, b""),
        (64 << 10, b"QFI\xfb"),
        (64 << 10, images.qcow2()),
        (64 << 10, images.qcow2(cluster_bits=9)),
        (64 << 10, images.qcow2(cluster_bits=40)),
        (2 << 20, images.qcow2(cluster_bits=21)),
        (HEAD_LENGTH, images.vmdk_descriptor()),
        (HEAD_LENGTH, images.vhd_footer(1 << 20)),
    ],
)
def test_of_most_images_only_the_very_beginning_is_wanted(length: int, head: bytes) -> None:
    """A MiB of each that comes would be a lot: it is for formats whose tables may lie there."""
    assert wanted(head) == length


def test_an_extension_at_the_end_of_the_first_cluster_is_within_what_is_wanted() -> None:
    """However large its clusters are, a qcow2 cannot hide an extension behind what is kept."""
    header = images.qcow2(cluster_bits=19)[:104]
    filler = struct.pack(">II", 1, (1 << 19) - 104 - 8 - 16) + bytes((1 << 19) - 104 - 8 - 16)
    head = (header + filler + struct.pack(">II", 0x44415441, 8) + bytes(8)).ljust(
        HEAD_LENGTH, b"\0"
    )
    kept = head[: wanted(head)]
    assert "data-file" in {failure.rule for failure in examine(kept, b"", 1 << 30).failures}
