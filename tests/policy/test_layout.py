"""Names and paths, both ways."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    DiskFormat,
    DiskKey,
    DiskName,
    ImageId,
    InstanceId,
)
from cacheagent.policy import layout as layout_module
from cacheagent.policy.layout import Layout, TemplateName

LAYOUT = Layout(state_dir=Path("/state"), instances_dir=Path("/instances"))
IMAGE = ImageId("5d3f0a6e-0b51-4c4e-9d6d-0b7f5a8b5f11")
INSTANCE = InstanceId("9f2c7a34-7f3d-4d0e-8a58-2a3c6a1b9d22")
BASE_ID = BaseId("sha512-" + "ab" * 64)
KEY = DiskKey(instance_id=INSTANCE, name=DiskName("root"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _base(fmt: DiskFormat = DiskFormat.RAW) -> Base:
    return Base(
        base_id=BASE_ID,
        state=BaseState.READY,
        format=fmt,
        source_format="qcow2",
        size=1,
        virtual_size=2,
        allocated=1,
        inspection_version=1,
        fetched_at=NOW,
        last_used_at=NOW,
    )


def test_the_folders_are_those_of_the_design() -> None:
    """Everything of the agent's own lies below the state folder, under fixed names."""
    paths = [
        LAYOUT.lock,
        LAYOUT.catalog,
        LAYOUT.spare,
        LAYOUT.bases,
        LAYOUT.ingest,
        LAYOUT.templates,
        LAYOUT.trash,
        LAYOUT.quarantine,
    ]
    names = ["lock", "catalog.db", "spare", "bases", "ingest", "templates", "trash", "quarantine"]
    assert paths == [Path("/state") / name for name in names]


@pytest.mark.parametrize("fmt", DiskFormat)
def test_a_base_keeps_its_name_wherever_it_goes(fmt: DiskFormat) -> None:
    """In the trash and in quarantine a base and its manifest are called what they were."""
    base, manifest = LAYOUT.base(BASE_ID, fmt), LAYOUT.manifest(BASE_ID, fmt)
    assert LAYOUT.trashed(BASE_ID, fmt) == LAYOUT.trash / base.name
    assert LAYOUT.trashed_manifest(BASE_ID, fmt) == LAYOUT.trash / manifest.name
    assert LAYOUT.quarantined(BASE_ID, fmt) == LAYOUT.quarantine / base.name
    assert LAYOUT.quarantined_manifest(BASE_ID, fmt) == LAYOUT.quarantine / manifest.name


def test_a_refused_image_and_its_record() -> None:
    """The name in quarantine tells which image, when and why, and parses back."""
    name = layout_module.refused_name(IMAGE, NOW, "backing-file")
    path, record = LAYOUT.refused(name), LAYOUT.refused_record(name)
    assert path == LAYOUT.quarantine / f"{IMAGE}.20260101T000000000000Z.backing-file"
    assert record == path.with_name(f"{path.name}.json")
    assert layout_module.parse_refused_name(path.name) == name
    assert layout_module.parse_refused_record_name(record.name) == name
    assert layout_module.parse_refused_name(record.name) is None
    assert layout_module.parse_refused_record_name(path.name) is None


@pytest.mark.parametrize("reason", ["Some Rule/../x", "9-lives", "", "é", "a" * 300, "_x"])
def test_no_reason_makes_a_name_that_does_not_parse_back(reason: str) -> None:
    """Whatever a later inspector calls its rules, the file has a name of ours."""
    name = layout_module.refused_name(IMAGE, NOW, reason)
    assert layout_module.parse_refused_name(LAYOUT.refused(name).name) == name


@pytest.mark.parametrize(
    "name",
    [
        f"{IMAGE}.20261301T000000000000Z.corrupt",
        f"{IMAGE}.20260101T000000000000Z.",
        f"{IMAGE}.20260101T000000000000Z.a.b",
        f"{IMAGE}.20260101.corrupt",
        "notes.20260101T000000000000Z.corrupt",
    ],
)
def test_what_is_no_name_of_a_refused_image(name: str) -> None:
    """What lies in quarantine and is not ours is not taken for a refused image."""
    assert layout_module.parse_refused_name(name) is None


def test_a_base_and_its_manifest() -> None:
    """A base is named by content and format, its manifest after it, and both parse back."""
    base = LAYOUT.base(BASE_ID, DiskFormat.RAW)
    manifest = LAYOUT.manifest(BASE_ID, DiskFormat.RAW)
    assert base == Path(f"/state/bases/{BASE_ID}.raw")
    assert manifest == Path(f"/state/bases/{BASE_ID}.raw.json")
    assert layout_module.parse_base_name(base.name) == (BASE_ID, DiskFormat.RAW)
    assert layout_module.parse_manifest_name(manifest.name) == (BASE_ID, DiskFormat.RAW)
    assert layout_module.parse_base_name(manifest.name) is None
    assert layout_module.parse_manifest_name(base.name) is None


@pytest.mark.parametrize(
    "name",
    [
        "sha512-abc.raw",
        f"md5-{'a' * 32}.raw",
        f"sha256-{'A' * 64}.raw",
        f"sha256-{'a' * 64}.vmdk",
        f"sha256-{'a' * 64}",
        f"sha256-{'a' * 64}.raw\n",
        f".sha256-{'a' * 64}.raw",
        "README",
        "",
    ],
)
def test_other_names_are_no_base(name: str) -> None:
    """What does not fit the pattern to the letter is unknown."""
    assert layout_module.parse_base_name(name) is None
    assert layout_module.parse_manifest_name(f"{name}.json") is None


def test_the_files_of_an_ingest() -> None:
    """Bytes, record and conversion of an image are told apart by their endings."""
    part, record = LAYOUT.part(IMAGE), LAYOUT.part_record(IMAGE)
    raw, qcow2 = LAYOUT.conversion(IMAGE), LAYOUT.conversion(IMAGE, DiskFormat.QCOW2)
    assert [path.name.removeprefix(IMAGE) for path in (part, record, raw, qcow2)] == [
        ".part",
        ".part.json",
        ".raw",
        ".qcow2",
    ]
    assert {path.parent for path in (part, record, raw, qcow2)} == {LAYOUT.ingest}
    parsed = [
        (
            layout_module.parse_part_name(path.name),
            layout_module.parse_part_record_name(path.name),
            layout_module.parse_conversion_name(path.name),
        )
        for path in (part, record, raw, qcow2, Path("other.part"))
    ]
    assert parsed == [
        (IMAGE, None, None),
        (None, IMAGE, None),
        (None, None, (IMAGE, DiskFormat.RAW)),
        (None, None, (IMAGE, DiskFormat.QCOW2)),
        (None, None, None),
    ]


def test_the_disk_out_of_a_container() -> None:
    """It has a name of its own, which is none of the other files of its ingest."""
    path = LAYOUT.unpacked(IMAGE)
    assert path == LAYOUT.ingest / f"{IMAGE}.unpacked"
    assert layout_module.parse_unpacked_name(path.name) == IMAGE
    assert layout_module.parse_unpacked_name(LAYOUT.part(IMAGE).name) is None
    assert layout_module.parse_part_name(path.name) is None
    assert layout_module.parse_conversion_name(path.name) is None


def test_a_template_is_named_by_what_it_holds() -> None:
    """Base, size, options, both formats and the path of the base each make another template."""
    moved = Layout(state_dir=Path("/other"), instances_dir=Path("/instances"))
    qcow2 = DiskFormat.QCOW2
    names = [
        LAYOUT.template(_base(), qcow2, 1 << 30, "").name,
        LAYOUT.template(_base(DiskFormat.QCOW2), qcow2, 1 << 30, "").name,
        LAYOUT.template(_base(), qcow2, 1 << 31, "").name,
        LAYOUT.template(_base(), qcow2, 1 << 30, "cluster_size=128k").name,
        LAYOUT.template(None, qcow2, 1 << 30, "").name,
        moved.template(_base(), qcow2, 1 << 30, "").name,
        LAYOUT.template(_base(), DiskFormat.RAW, 1 << 30, "").name,
    ]
    assert len(set(names)) == len(names)
    again = LAYOUT.template(_base(), qcow2, 1 << 30, "")
    assert again.name == names[0]
    assert again.parent == LAYOUT.templates
    assert len(again.name) < 255


def test_a_template_tells_its_base() -> None:
    """The base behind a template is read from its name, so that both can go together."""
    name = LAYOUT.template(_base(), DiskFormat.QCOW2, 5, "").name
    blank = LAYOUT.template(None, DiskFormat.QCOW2, 5, "").name
    parse = layout_module.parse_template_name
    assert parse(name) == TemplateName(base_id=BASE_ID, format=DiskFormat.QCOW2)
    assert parse(blank) == TemplateName(base_id=None, format=DiskFormat.QCOW2)
    assert parse(name.replace(BASE_ID, "sha512-ab")) is None
    assert parse(f"{BASE_ID}.qcow2") is None


def test_a_disk_lies_in_the_folder_of_its_instance() -> None:
    """Where a disk lies tells whose it is, and which."""
    path = LAYOUT.disk(KEY, DiskFormat.QCOW2)
    assert path == Path(f"/instances/{INSTANCE}/root.qcow2")
    assert LAYOUT.instance(INSTANCE) == path.parent
    assert layout_module.parse_instance_name(path.parent.name) == INSTANCE
    assert layout_module.parse_disk_file_name(path.name) == (KEY.name, DiskFormat.QCOW2)


def test_a_backing_file_tells_its_base() -> None:
    """A path names a base only if it lies in the folder of the bases."""
    path = LAYOUT.base(BASE_ID, DiskFormat.RAW)
    assert LAYOUT.base_of(path) == (BASE_ID, DiskFormat.RAW)
    assert LAYOUT.base_of(Path("/elsewhere") / path.name) is None
    assert LAYOUT.base_of(LAYOUT.bases / "other") is None


def test_a_file_that_is_being_made_is_told_by_its_name() -> None:
    """An unfinished file lies beside its final place under a name that leads to it."""
    path = LAYOUT.unfinished_disk(KEY, DiskFormat.RAW)
    assert path == Path(f"/instances/{INSTANCE}/.root.raw.making")
    assert path == layout_module.unfinished(LAYOUT.disk(KEY, DiskFormat.RAW))
    assert layout_module.parse_unfinished_name(path.name) == "root.raw"
    assert layout_module.parse_unfinished_name("root.raw") is None
    assert layout_module.parse_unfinished_name("..making") is None


def test_a_broken_file_is_kept_under_a_number() -> None:
    """What cannot be read is set aside beside its place, as often as it happens."""
    assert layout_module.broken(LAYOUT.catalog, 2) == Path("/state/catalog.db.broken-2")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "../x"])
def test_no_path_leaves_its_folder(name: str) -> None:
    """Should an identifier ever arrive unparsed, it meets a wall here."""
    with pytest.raises(ValueError, match="is not a name inside of /instances"):
        LAYOUT.instance(InstanceId(name))
