"""What lies in our folders, told by the names alone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cacheagent.model import DiskFormat
from cacheagent.policy.inventory import (
    Folder,
    Inventory,
    Leftover,
    LeftoverKind,
    Listing,
    take,
)
from cacheagent.policy.layout import Layout, refused_name, unfinished
from tests.fakes.values import base, base_id, disk_key, image_id, instance_id

LAYOUT = Layout(state_dir=Path("/state"), instances_dir=Path("/instances"))
RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
EMPTY = Folder()


def _folder(*paths: Path) -> Folder:
    return Folder(files=frozenset(path.name for path in paths))


def _listing(
    *,
    bases: Folder | None = EMPTY,
    ingest: Folder | None = EMPTY,
    templates: Folder | None = EMPTY,
    trash: Folder | None = EMPTY,
    quarantine: Folder | None = EMPTY,
    instances: dict[str, Folder | None] | None = None,
    instances_others: frozenset[str] = frozenset(),
) -> Listing:
    return Listing(
        bases=bases,
        ingest=ingest,
        templates=templates,
        trash=trash,
        quarantine=quarantine,
        instances=instances or {},
        instances_others=instances_others,
    )


def _all_unknown(inventory: Inventory) -> bool:
    return not (inventory.bases or inventory.disks or inventory.leftovers)


def test_bases_and_their_manifests() -> None:
    """In the folder of the bases each file is a base, a manifest, one being made, or unknown."""
    files = [
        LAYOUT.base(base_id(1), RAW),
        LAYOUT.manifest(base_id(1), RAW),
        unfinished(LAYOUT.manifest(base_id(2), QCOW2)),
        unfinished(LAYOUT.base(base_id(2), QCOW2)),
        LAYOUT.bases / "README",
        LAYOUT.bases / ".README.making",
    ]
    found = take(LAYOUT, _listing(bases=_folder(*files)))
    assert found.bases_readable
    assert found.bases == ((base_id(1), RAW),)
    assert found.leftovers == (
        Leftover(kind=LeftoverKind.UNFINISHED, path=files[2], base_id=base_id(2), format=QCOW2),
        Leftover(kind=LeftoverKind.UNFINISHED, path=files[3], base_id=base_id(2), format=QCOW2),
        Leftover(kind=LeftoverKind.MANIFEST, path=files[1], base_id=base_id(1), format=RAW),
    )
    assert found.unknown == (files[5], files[4])


def test_ingests() -> None:
    """Bytes and record of a download belong together; a conversion is another thing."""
    part, record = LAYOUT.part(image_id(1)), LAYOUT.part_record(image_id(1))
    conversion = LAYOUT.conversion(image_id(1))
    making = unfinished(record)
    found = take(LAYOUT, _listing(ingest=_folder(part, record, conversion, making)))
    assert found.leftovers == (
        Leftover(kind=LeftoverKind.UNFINISHED, path=making, image_id=image_id(1)),
        Leftover(kind=LeftoverKind.PART, path=part, image_id=image_id(1)),
        Leftover(kind=LeftoverKind.PART, path=record, image_id=image_id(1)),
        Leftover(kind=LeftoverKind.CONVERSION, path=conversion, image_id=image_id(1)),
    )
    assert found.unknown == ()


def test_templates_and_trash() -> None:
    """A template tells its base; what was thrown away is only what has a base's name."""
    of_base = LAYOUT.template(base(1), QCOW2, 5, "")
    blank = LAYOUT.template(None, QCOW2, 5, "")
    gone, manifest = LAYOUT.trashed(base_id(1), RAW), LAYOUT.trashed_manifest(base_id(1), RAW)
    found = take(
        LAYOUT,
        _listing(
            templates=_folder(of_base, blank, Path("notes")),
            trash=_folder(gone, manifest, Path("notes")),
        ),
    )
    assert set(found.leftovers) == {
        Leftover(kind=LeftoverKind.TEMPLATE, path=of_base, base_id=base_id(1), format=QCOW2),
        Leftover(kind=LeftoverKind.TEMPLATE, path=blank, format=QCOW2),
        Leftover(kind=LeftoverKind.TRASH, path=gone, base_id=base_id(1), format=RAW),
        Leftover(kind=LeftoverKind.TRASHED_MANIFEST, path=manifest, base_id=base_id(1), format=RAW),
    }
    assert found.unknown == (LAYOUT.templates / "notes", LAYOUT.trash / "notes")


def test_quarantine() -> None:
    """What failed verification lies there under the names that it had as a base."""
    bad, record = (
        LAYOUT.quarantine / path.name
        for path in (LAYOUT.base(base_id(1), RAW), LAYOUT.manifest(base_id(1), RAW))
    )
    found = take(LAYOUT, _listing(quarantine=_folder(bad, record, Path("notes"))))
    assert found.bases == ()
    assert found.leftovers == tuple(
        Leftover(kind=LeftoverKind.QUARANTINE, path=path, base_id=base_id(1), format=RAW)
        for path in (bad, record)
    )
    assert found.unknown == (LAYOUT.quarantine / "notes",)


def test_refused_images_in_quarantine() -> None:
    """An image that was refused, and its record, are ours; both tell of the same refusal."""
    name = refused_name(image_id(1), datetime(2026, 1, 1, tzinfo=UTC), "corrupt")
    path, record = LAYOUT.refused(name), LAYOUT.refused_record(name)
    making = unfinished(record)
    found = take(LAYOUT, _listing(quarantine=_folder(path, record, making)))
    assert set(found.leftovers) == {
        Leftover(kind=LeftoverKind.REFUSED, path=path, refused=name),
        Leftover(kind=LeftoverKind.REFUSED_RECORD, path=record, refused=name),
        Leftover(kind=LeftoverKind.UNFINISHED, path=making, refused=name),
    }
    assert found.unknown == ()


def test_disks_of_instances() -> None:
    """Only folders that are named like an instance hold disks of ours."""
    key = disk_key(1)
    name, other = instance_id(1), instance_id(2)
    making = LAYOUT.unfinished_disk(key, RAW)
    folders = {
        name: Folder(
            files=frozenset({"root.qcow2", making.name, "console.log", ".console.log.making"}),
            others=frozenset({"swap.raw"}),
        ),
        other: None,
        "lost+found": Folder(files=frozenset({"root.qcow2"})),
    }
    found = take(LAYOUT, _listing(instances=folders, instances_others=frozenset({"notes"})))
    assert found.instance_folders == frozenset({name, other})
    assert found.unreadable_instances == frozenset({other})
    assert found.disks == ((key, QCOW2),)
    assert found.leftovers == (
        Leftover(kind=LeftoverKind.UNFINISHED, path=making, format=RAW, key=key),
    )
    assert found.unknown == (
        LAYOUT.instances_dir / "notes",
        LAYOUT.instances_dir / "lost+found",
        LAYOUT.instances_dir / name / ".console.log.making",
        LAYOUT.instances_dir / name / "console.log",
        LAYOUT.instances_dir / name / "swap.raw",
    )


def test_what_is_no_regular_file_is_never_ours() -> None:
    """A folder or a link with the name of a file of ours is unknown."""
    name = LAYOUT.base(base_id(1), RAW).name
    found = take(LAYOUT, _listing(bases=Folder(others=frozenset({name}))))
    assert _all_unknown(found)
    assert found.unknown == (LAYOUT.bases / name,)


def test_a_name_is_ours_only_in_its_own_folder() -> None:
    """A file of ours in the wrong folder is unknown there."""
    part, base_file = LAYOUT.part(image_id(1)), LAYOUT.base(base_id(1), RAW)
    found = take(
        LAYOUT,
        _listing(bases=_folder(part), ingest=_folder(base_file), templates=_folder(base_file)),
    )
    assert _all_unknown(found)
    assert len(found.unknown) == 3


def test_folders_that_cannot_be_read_are_told() -> None:
    """That nobody knows what is there is not the same as nothing."""
    listing = Listing(
        bases=None, ingest=None, templates=None, trash=None, quarantine=None, instances=None
    )
    found = take(LAYOUT, listing)
    assert not found.bases_readable
    assert found.instance_folders is None
    assert _all_unknown(found)
