"""Links, pipes and folders that somebody puts where the agent is about to write."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.qcow2 import read_header
from cacheagent.backends.store import Store
from cacheagent.errors import (
    ConfigError,
    DigestMismatchError,
    HostUnavailableError,
    ProblemError,
)
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec, ImageId
from cacheagent.policy.layout import Layout, refused_name, unfinished
from cacheagent.service.quarantine import Quarantine
from tests.fakes.values import disk_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

NOBODY = Caller()
KEY = disk_key(1)
DATA = b"data" * (1 << 18)
PRECIOUS = b"precious" * 512
NAMES = ("root.qcow2", "root.raw", "root.qcow2.making", "root.raw.making")

Planting = dict[str, tuple[bytes, int, int, int]]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder of somebody else, with files whose names are like ours."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o701)
    for name in NAMES:
        (folder / name).write_bytes(PRECIOUS)
        (folder / name).chmod(0o604)
    return folder


def state(folder: Path) -> Planting:
    """Tell what is in the folder: bytes, rights and owners."""
    found = {".": (b"", folder.stat().st_mode, folder.stat().st_uid, folder.stat().st_gid)}
    for path in sorted(folder.iterdir()):
        told = path.lstat()
        found[path.name] = (path.read_bytes(), told.st_mode, told.st_uid, told.st_gid)
    return found


def specs(image_id: ImageId) -> dict[str, DiskSpec]:
    """Give a disk of each kind that comes about in another way."""
    return {
        "overlay": DiskSpec(image_id=image_id, size=None),
        "copy": DiskSpec(
            image_id=image_id, size=2 << 20, format=DiskFormat.RAW, mode=DiskMode.FULL
        ),
        "converted": DiskSpec(image_id=image_id, size=2 << 20, mode=DiskMode.FULL),
        "blank": DiskSpec(image_id=None, size=1 << 20, format=DiskFormat.RAW, mode=DiskMode.FULL),
    }


@pytest.mark.parametrize("kind", ["overlay", "copy", "converted", "blank"])
async def test_folder_of_an_instance_is_a_link(
    rig: Rig, glance: LyingGlance, outside: Path, kind: str
) -> None:
    """No disk is made in a folder that a link leads to, and nothing there is touched."""
    before = state(outside)
    folder = rig.layout.instance(KEY.instance_id)
    folder.symlink_to(outside)
    with pytest.raises(HostUnavailableError, match="did not make"):
        await rig.disks.create(KEY, specs(glance.add(DATA))[kind], NOBODY)
    assert state(outside) == before
    assert folder.is_symlink()


@pytest.mark.parametrize("whole", [False, True])
async def test_folder_of_a_disk_became_a_link(
    rig: Rig, glance: LyingGlance, outside: Path, *, whole: bool
) -> None:
    """A disk is not removed through a link; its row stays until somebody has looked."""
    await rig.disks.create(KEY, DiskSpec(image_id=glance.add(DATA), size=None), NOBODY)
    before = state(outside)
    folder = rig.layout.instance(KEY.instance_id)
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.symlink_to(outside)
    with pytest.raises(HostUnavailableError):
        await (rig.disks.delete_instance(KEY.instance_id) if whole else rig.disks.delete(KEY))
    assert state(outside) == before
    folder.unlink()
    moved.rename(folder)
    assert (await rig.disks.show(KEY)).path.exists()


async def refusal(work: Awaitable[object]) -> ProblemError | None:
    """Give the problem that the work ends in, None where it succeeds."""
    try:
        await work
    except ProblemError as error:
        return error
    return None


def link(path: Path, outside: Path) -> None:
    """Plant a symbolic link to a file."""
    path.symlink_to(outside / "root.raw")


def hard_link(path: Path, outside: Path) -> None:
    """Plant a second name of a file."""
    path.hardlink_to(outside / "root.raw")


def pipe(path: Path, _outside: Path) -> None:
    """Plant a named pipe, at whose other end nobody is."""
    os.mkfifo(path)


PLANTS = [link, hard_link, pipe]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("kind", ["overlay", "copy", "converted", "blank"])
@pytest.mark.parametrize("finished", [False, True])
async def test_name_of_a_disk_is_taken(
    rig: Rig,
    glance: LyingGlance,
    outside: Path,
    plant: Callable[[Path, Path], None],
    *,
    kind: str,
    finished: bool,
) -> None:
    """What lies under the name of a disk is never written to; an unfinished name is made anew."""
    before = state(outside)
    spec = specs(glance.add(DATA))[kind]
    name = rig.layout.disk if finished else rig.layout.unfinished_disk
    path = name(KEY, spec.format)
    path.parent.mkdir(parents=True)
    plant(path, outside)
    error = await refusal(rig.disks.create(KEY, spec, NOBODY))
    assert (None if error is None else error.word) == ("disk-conflict" if finished else None)
    assert os.path.lexists(path) == finished
    assert state(outside) == before


@pytest.mark.parametrize("plant", [link, pipe])
@pytest.mark.parametrize(
    "name", ["lock", "spare", "catalog.db", "catalog.db-wal", "catalog.db-shm"]
)
async def test_name_in_the_state_folder_is_taken(
    tmp_path: Path, outside: Path, plant: Callable[[Path, Path], None], name: str
) -> None:
    """The agent does not start on a state folder in which a link leads elsewhere."""
    before = state(outside)
    layout = Layout(state_dir=tmp_path / "planted", instances_dir=tmp_path / "instances")
    layout.state_dir.mkdir()
    plant(layout.state_dir / name, outside)
    store = Store(layout, group=None, disk_mode=0o660)
    try:
        with pytest.raises(ConfigError, match=name):
            await store.open()
    finally:
        await store.close()
    assert state(outside) == before


@pytest.mark.parametrize("plant", [link, pipe])
@pytest.mark.parametrize("what", ["part", "record", "unfinished record", "manifest", "base"])
async def test_name_of_an_ingest_is_taken(
    rig: Rig, glance: LyingGlance, outside: Path, plant: Callable[[Path, Path], None], what: str
) -> None:
    """A download writes into no file but its own; what keeps it from that is told."""
    before = state(outside)
    image_id = glance.add(DATA)
    base_id = "sha512-" + str(glance.images[image_id].metadata["os_hash_value"])
    record = rig.layout.part_record(image_id)
    names = {
        "part": rig.layout.part(image_id),
        "record": record,
        "unfinished record": unfinished(record),
        "manifest": unfinished(rig.layout.bases / f"{base_id}.raw.json"),
        "base": rig.layout.bases / f"{base_id}.raw",
    }
    plant(names[what], outside)
    error = await refusal(rig.bases.ensure(image_id, NOBODY))
    if what == "part":
        assert str(names[what]) in str(error)
    else:
        assert error is None
        assert names["base"].read_bytes() == DATA
        assert not names["base"].is_symlink()
    assert state(outside) == before


@pytest.mark.parametrize(
    ("plant", "finished"),
    [(link, False), (hard_link, False), (pipe, False), (link, True), (pipe, True)],
)
async def test_name_of_a_template_is_taken(
    rig: Rig,
    glance: LyingGlance,
    outside: Path,
    plant: Callable[[Path, Path], None],
    *,
    finished: bool,
) -> None:
    """No template is written through a link, nor does a disk begin as what lies behind one."""
    before = state(outside)
    image_id = glance.add(DATA)
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    await rig.disks.create(KEY, DiskSpec(image_id=image_id, size=None), NOBODY)
    (template,) = rig.layout.templates.iterdir()
    template.unlink()
    planted = template if finished else unfinished(template)
    plant(planted, outside)
    other = disk_key(2)
    await rig.disks.create(other, DiskSpec(image_id=image_id, size=None), NOBODY)
    assert state(outside) == before
    assert not template.is_symlink()
    header = read_header(rig.layout.disk(other, DiskFormat.QCOW2))
    assert header.backing_file == str(rig.layout.base(base.base_id, base.format))


@pytest.mark.parametrize("plant", PLANTS)
async def test_name_in_the_trash_is_taken(
    rig: Rig, glance: LyingGlance, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    """A base that goes takes the place of what lies there, and nothing behind a link goes."""
    before = state(outside)
    image_id = glance.add(DATA)
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    plant(rig.layout.trashed(base.base_id, base.format), outside)
    plant(rig.layout.trashed_manifest(base.base_id, base.format), outside)
    await rig.images.evict(image_id, NOBODY)
    assert await rig.parts.catalog.bases() == []
    assert list(rig.layout.trash.iterdir()) == []
    assert list(rig.layout.bases.iterdir()) == []
    assert state(outside) == before


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("what", ["file", "record", "unfinished record"])
async def test_name_of_a_refused_image_is_taken(
    rig: Rig, glance: LyingGlance, outside: Path, plant: Callable[[Path, Path], None], what: str
) -> None:
    """A refused image and its record take the place of what lies there, and write into nothing."""
    before = state(outside)
    image_id = glance.add(DATA, os_hash_value="0" * 128)
    name = refused_name(image_id, rig.parts.now(), "digest-mismatch")
    record = rig.layout.refused_record(name)
    names = {
        "file": rig.layout.refused(name),
        "record": record,
        "unfinished record": unfinished(record),
    }
    plant(names[what], outside)
    error = await refusal(rig.bases.ensure(image_id, NOBODY))
    assert isinstance(error, DigestMismatchError)
    assert state(outside) == before
    assert names["file"].read_bytes() == DATA
    assert not names["file"].is_symlink()
    assert image_id in record.read_text()


@pytest.mark.parametrize("plant", [link, pipe])
async def test_record_of_a_refused_image_became_a_link(
    rig: Rig, glance: LyingGlance, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    """What a link leads to is not shown as what was found, and does not go with the image."""
    image_id = glance.add(DATA, os_hash_value="0" * 128)
    await refusal(rig.bases.ensure(image_id, NOBODY))
    quarantine = Quarantine(rig.parts)
    (name,) = [each.name for each in (await quarantine.contents()).refused]
    record = rig.layout.refused_record(name)
    (outside / "root.raw").write_bytes(record.read_bytes())
    before = state(outside)
    record.unlink()
    plant(record, outside)
    (shown,) = (await quarantine.view(NOBODY, rig.access)).files
    assert (shown.image_id, shown.detail) == (image_id, "")
    await quarantine.drop((await quarantine.contents()).refused)
    assert list(rig.layout.quarantine.iterdir()) == []
    assert state(outside) == before


@pytest.mark.parametrize("plant", PLANTS)
async def test_name_of_a_damaged_base_is_taken(
    rig: Rig, glance: LyingGlance, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    """A damaged base takes the place of what lies in quarantine; that goes alone with it."""
    before = state(outside)
    base = (await rig.bases.ensure(glance.add(DATA), NOBODY)).base
    names = (
        rig.layout.quarantined(base.base_id, base.format),
        rig.layout.quarantined_manifest(base.base_id, base.format),
    )
    for name in names:
        plant(name, outside)
    await rig.parts.store.quarantine_base(base.base_id, base.format)
    assert names[0].read_bytes() == DATA
    assert not any(name.is_symlink() for name in names)
    await rig.parts.store.drop_quarantined(base.base_id, base.format)
    assert list(rig.layout.quarantine.iterdir()) == []
    assert state(outside) == before
