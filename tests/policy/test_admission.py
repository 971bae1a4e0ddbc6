"""What may come in, in the words of Glance, of the bytes and of qemu-img."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheagent.errors import ImageNotActiveError, ImageUnacceptableError
from cacheagent.model import DiskFormat, GlanceImage, ImageId
from cacheagent.policy.admission import (
    BaseFormat,
    Failure,
    Found,
    ImageRules,
    SourceFormat,
    admit_alias,
    admit_content,
    admit_description,
    admit_inside,
    admit_opened,
    admit_virtual_size,
    as_inspected,
    conversion_room,
    needs_conversion,
    room_needed,
    target_format,
)

FORMATS = frozenset({"raw", "qcow2", "iso", "vmdk", "vdi", "vhd", "vhdx", "ami", "aki", "ari"})
RULES = ImageRules(
    base_format=BaseFormat.RAW, allowed_formats=FORMATS, max_size=1000, max_virtual_size=5000
)
KEEP = replace(RULES, base_format=BaseFormat.KEEP)
IMAGE = GlanceImage(
    image_id=ImageId("11111111-2222-3333-4444-555555555555"),
    name="debian",
    status="active",
    disk_format="qcow2",
    container_format="bare",
    size=1000,
    os_hash_algo="sha256",
    os_hash_value="a" * 64,
)


def refused(call: object, *args: object, **keywords: object) -> str:
    """Give the reason for which the call refuses an image."""
    assert callable(call)
    with pytest.raises(ImageUnacceptableError) as caught:
        call(*args, **keywords)
    return caught.value.reason


def found(*formats: str, virtual_size: int = 100, failures: tuple[Failure, ...] = ()) -> Found:
    """Give what an inspection says of content that these formats match."""
    return Found(
        formats=frozenset(formats), length=50, virtual_size=virtual_size, failures=failures
    )


def test_an_image_within_all_bounds_may_be_downloaded() -> None:
    """Nothing is held against an active image of an allowed format, size and digest."""
    admit_description(IMAGE, RULES)
    admit_description(replace(IMAGE, os_hash_algo=None, checksum="b" * 32), RULES)
    admit_description(replace(IMAGE, os_hash_algo="sm3", checksum="b" * 32), RULES)
    admit_description(replace(IMAGE, disk_format="aki", container_format="aki"), RULES)


def test_an_image_that_is_not_active_is_named_as_such() -> None:
    """A deactivated image is no unacceptable one: its state in Glance is told."""
    with pytest.raises(ImageNotActiveError) as caught:
        admit_description(replace(IMAGE, status="deactivated"), RULES)
    assert caught.value.image_status == "deactivated"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("disk-format-unknown", {"disk_format": None}),
        ("disk-format-unknown", {"disk_format": "ploop"}),
        ("container-format", {"container_format": None}),
        ("container-format", {"container_format": "ova"}),
        ("container-format", {"container_format": "ami"}),
        ("size-unknown", {"size": None}),
        ("empty", {"size": 0}),
        ("size-unknown", {"size": -1}),
        ("too-large", {"size": 1001}),
        ("virtual-size", {"virtual_size": 5001}),
        ("no-digest", {"os_hash_algo": None, "os_hash_value": None}),
        ("no-digest", {"os_hash_value": None}),
        ("unknown-digest-algorithm", {"os_hash_algo": "sm3"}),
        ("malformed-digest", {"os_hash_value": "a" * 63}),
        ("malformed-digest", {"os_hash_value": "../" + "a" * 61}),
        ("malformed-digest", {"os_hash_value": None, "checksum": "b" * 31}),
    ],
)
def test_a_description_that_breaks_a_rule_names_the_rule(
    reason: str, changes: dict[str, object]
) -> None:
    """Each rule about what Glance says has a reason of its own, told before the download."""
    image = replace(IMAGE, **changes)  # type: ignore[arg-type]
    assert refused(admit_description, image, RULES) == reason


def test_a_format_that_the_operator_left_out_is_refused() -> None:
    """The list of allowed formats is the operator's."""
    rules = replace(RULES, allowed_formats=frozenset({"raw"}))
    assert refused(admit_description, IMAGE, rules) == "disk-format-not-allowed"


@pytest.mark.parametrize(
    ("disk_format", "formats", "source"),
    [
        ("raw", {"raw"}, SourceFormat.RAW),
        ("raw", {"gpt"}, SourceFormat.RAW),
        ("raw", {"iso", "gpt"}, SourceFormat.RAW),
        ("raw", {"vhd-fixed", "gpt"}, SourceFormat.RAW),
        ("ami", {"raw"}, SourceFormat.RAW),
        ("aki", {"gpt"}, SourceFormat.RAW),
        ("ari", {"raw"}, SourceFormat.RAW),
        ("iso", {"iso"}, SourceFormat.RAW),
        ("iso", {"iso", "gpt"}, SourceFormat.RAW),
        ("qcow2", {"qcow2"}, SourceFormat.QCOW2),
        ("vmdk", {"vmdk"}, SourceFormat.VMDK),
        ("vdi", {"vdi"}, SourceFormat.VDI),
        ("vhdx", {"vhdx"}, SourceFormat.VHDX),
        ("vhd", {"vhd"}, SourceFormat.VPC),
        ("vhd", {"vhd-fixed", "gpt"}, SourceFormat.VPC),
    ],
)
def test_content_that_is_what_glance_says_is_opened_as_that(
    disk_format: str, formats: set[str], source: SourceFormat
) -> None:
    """The format for qemu-img follows from Glance's word, once the content agrees with it."""
    image = replace(IMAGE, disk_format=disk_format)
    assert admit_content(image, found(*formats), RULES) is source


@pytest.mark.parametrize(
    ("disk_format", "formats", "reason"),
    [
        ("raw", {"qcow2"}, "format-mismatch"),
        ("raw", {"vmdk"}, "format-mismatch"),
        ("ami", {"vhdx"}, "format-mismatch"),
        ("qcow2", {"raw"}, "format-mismatch"),
        ("iso", {"gpt"}, "format-mismatch"),
        ("iso", {"qcow2"}, "format-mismatch"),
        ("vhd", {"raw"}, "format-mismatch"),
        ("raw", {"qcow2", "iso"}, "format-ambiguous"),
        ("qcow2", {"qcow2", "iso"}, "format-ambiguous"),
        ("iso", {"iso", "vmdk"}, "format-ambiguous"),
    ],
)
def test_content_that_is_something_else_is_refused(
    disk_format: str, formats: set[str], reason: str
) -> None:
    """A qcow2 that claims to be raw, or is two things at once, gets no further."""
    image = replace(IMAGE, disk_format=disk_format)
    assert refused(admit_content, image, found(*formats), RULES) == reason


def test_a_broken_safety_rule_is_the_reason() -> None:
    """What the inspection found wrong is what the caller reads."""
    failure = Failure(format="qcow2", rule="backing-file", message="it names a backing file")
    content = found("qcow2", failures=(failure,))
    assert refused(admit_content, IMAGE, content, RULES) == "backing-file"


def test_a_broken_partition_table_harms_only_the_guest() -> None:
    """Kernels and boot sectors look like broken partition tables, and are let in."""
    failure = Failure(format="gpt", rule="mbr", message="no partitions")
    image = replace(IMAGE, disk_format="aki")
    assert admit_content(image, found("gpt", failures=(failure,)), RULES) is SourceFormat.RAW


def test_a_disk_beyond_the_limit_is_refused_by_its_content() -> None:
    """A small file that unfolds into a huge disk is refused, whatever Glance knew."""
    assert refused(admit_content, IMAGE, found("qcow2", virtual_size=5001), RULES) == "virtual-size"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backing_file": "/etc/passwd"}, "backing-file"),
        ({"data_file": "/etc/passwd"}, "data-file"),
        ({"encrypted": True}, "encrypted"),
        ({"corrupt": True}, "corrupt"),
        ({"virtual_size": 5001}, "virtual-size"),
    ],
)
def test_what_qemu_img_sees_is_judged_again(changes: dict[str, object], reason: str) -> None:
    """A reference that the first look missed is caught before the conversion."""
    sane = {
        "virtual_size": 5000,
        "backing_file": None,
        "data_file": None,
        "encrypted": False,
        "corrupt": False,
    }
    admit_opened(**sane, rules=RULES)  # type: ignore[arg-type]
    assert refused(admit_opened, **{**sane, **changes}, rules=RULES) == reason


def test_a_later_look_finds_no_larger_disk_than_there_is_room_for() -> None:
    """Room is set aside for the disk that was inspected; qemu-img may round it up to a sector."""
    rules = as_inspected(RULES, 1000)
    assert rules.max_virtual_size == 1024
    assert refused(admit_virtual_size, 1536, rules) == "virtual-size"
    assert as_inspected(RULES, 1 << 50).max_virtual_size == RULES.max_virtual_size


def test_a_disk_in_an_image_is_judged_as_a_raw_image_is() -> None:
    """What a converted image has become is plain data to whoever looks for a format."""
    admit_inside(frozenset())
    admit_inside(frozenset({"vhd-fixed"}))
    assert refused(admit_inside, frozenset({"qcow2"})) == "nested-format"


def test_content_that_is_here_has_to_suit_the_other_image_as_well() -> None:
    """An image with the digest of a base shares it only if it is declared alike."""
    admit_alias(IMAGE, "qcow2", 5000, RULES)
    admit_alias(replace(IMAGE, disk_format="iso"), "raw", 5000, RULES)
    raw = replace(IMAGE, disk_format="raw")
    assert refused(admit_alias, raw, "qcow2", 5000, RULES) == "format-mismatch"
    assert refused(admit_alias, IMAGE, "qcow2", 5001, RULES) == "virtual-size"


@pytest.mark.parametrize(
    ("source", "rules", "target"),
    [
        (SourceFormat.RAW, RULES, DiskFormat.RAW),
        (SourceFormat.QCOW2, RULES, DiskFormat.RAW),
        (SourceFormat.RAW, KEEP, DiskFormat.RAW),
        (SourceFormat.QCOW2, KEEP, DiskFormat.QCOW2),
        (SourceFormat.VMDK, KEEP, DiskFormat.RAW),
        (SourceFormat.VPC, KEEP, DiskFormat.RAW),
    ],
)
def test_a_base_is_raw_or_what_may_be_kept(
    source: SourceFormat, rules: ImageRules, target: DiskFormat
) -> None:
    """Only raw and qcow2 are ever kept; what is neither becomes raw."""
    assert target_format(source, rules) is target
    assert needs_conversion(source, rules) is (source.value != target.value)


def test_room_is_for_the_download_and_for_what_it_becomes() -> None:
    """As far as Glance knows the virtual size, the conversion's bytes are reserved as well."""
    image = replace(IMAGE, virtual_size=4000)
    assert room_needed(image, RULES) == 5000
    assert room_needed(image, KEEP) == 1000
    assert room_needed(IMAGE, RULES) == 1000
    assert room_needed(replace(image, disk_format="iso"), RULES) == 1000
    assert conversion_room(SourceFormat.VMDK, 4000, KEEP) == 4000
    assert conversion_room(SourceFormat.RAW, 4000, RULES) == 0
