"""Files and catalog are made to agree, whatever a crash, or somebody, has left."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import DiskFullError
from cacheagent.model import (
    BaseState,
    CacheResult,
    Caller,
    DiskFormat,
    DiskMode,
    DiskSpec,
    DiskState,
    FileSystem,
    ImageId,
    Lease,
)
from cacheagent.policy.layout import unfinished
from tests.fakes import lying_glance
from tests.fakes.qcow2 import write_overlay
from tests.fakes.values import NOW, base_id, disk, disk_key, image_id
from tests.service.rig import gathered, in_a_task, recorded, rig_on, until

if TYPE_CHECKING:
    from datetime import datetime

    from cacheagent.model import Base, DiskKey
    from cacheagent.policy.drift import DriftPlan
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = b"data" * (MIB // 4)
NOBODY = Caller()
RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
KEY = disk_key(1)


@pytest.fixture
def image(glance: LyingGlance) -> ImageId:
    """Give an image."""
    return glance.add(DATA)


@pytest.fixture
async def base(rig: Rig, image: ImageId) -> Base:
    """Bring its base in."""
    return (await rig.bases.ensure(image, NOBODY)).base


def of(image: ImageId | None, **spec: object) -> DiskSpec:
    """Ask for a disk of the image."""
    return DiskSpec(image_id=image, **{"size": 2 * MIB, **spec})  # type: ignore[arg-type]


async def make(rig: Rig, image: ImageId | None, key: DiskKey = KEY, **spec: object) -> Path:
    """Make a disk, and give its path."""
    view, _ = await rig.disks.create(key, of(image, **spec), NOBODY)
    return view.path


async def forget_everything(rig: Rig) -> None:
    """Empty the catalog, as if its file had been lost."""
    catalog = rig.parts.catalog
    for row in await catalog.disks():
        await catalog.remove_disk(row.key, NOW)
    for each in await catalog.bases():
        await catalog.remove_base(each.base_id)
    for cached in await catalog.images():
        await catalog.forget_image(cached.image.image_id)


async def reconciled(rig: Rig) -> DriftPlan:
    """Reconcile, and check that this leaves nothing to be done."""
    plan = await rig.reconcile.run(NOW)
    again = await rig.reconcile.run(NOW)
    left_alone = {"unknown_file": plan.counts()["unknown_file"]}
    assert {kind: count for kind, count in again.counts().items() if count} == {
        kind: count for kind, count in left_alone.items() if count
    }
    return plan


def put(path: Path) -> Path:
    """Put a file there."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"left")
    return path


async def test_nothing_is_done_where_all_agrees(rig: Rig, image: ImageId) -> None:
    """A start after an orderly stop changes nothing."""
    await make(rig, image)
    assert set((await rig.reconcile.run(NOW)).counts().values()) == {0}


async def test_leftovers_of_every_kind_go(rig: Rig, image: ImageId, base: Base) -> None:
    """What a crash left half done is removed, and what is of use stays."""
    path = await make(rig, image)
    layout, gone = rig.layout, base_id(7)
    template = next(layout.templates.iterdir())
    leftovers = [
        layout.part(image_id(1)),
        layout.part_record(image_id(1)),
        unfinished(layout.part_record(image_id(1))),
        layout.conversion(image_id(1), RAW),
        layout.conversion(image_id(1), QCOW2),
        layout.manifest(gone, RAW),
        unfinished(layout.manifest(base.base_id, RAW)),
        layout.templates / template.name.replace(base.base_id, gone),
        unfinished(template),
        layout.trashed(gone, RAW),
        layout.unfinished_disk(KEY, QCOW2),
        layout.unfinished_disk(KEY, RAW),
    ]
    for leftover in leftovers:
        put(leftover)
    plan = await reconciled(rig)
    assert sorted(plan.remove_files) == sorted(leftovers)
    assert [leftover for leftover in leftovers if leftover.exists()] == []
    assert path.exists()
    assert template.exists()
    assert layout.base(base.base_id, base.format).read_bytes() == DATA
    assert rig.metric("reconcile_drift_total", kind="ingest_stale") == len(leftovers)


async def test_what_is_not_ours_is_left_alone_and_counted(
    rig: Rig, image: ImageId, tmp_path: Path
) -> None:
    """No file of anybody else is removed, in whichever folder it lies and whatever it is."""
    path = await make(rig, image)
    layout = rig.layout
    foreign = [
        put(folder / name)
        for folder in (
            *(layout.bases, layout.ingest, layout.templates, layout.trash),
            *(path.parent, layout.instances_dir),
        )
        for name in ("precious", ".hidden", "Sha512-12.raw", "a.part.bak")
    ]
    outside = put(tmp_path / "outside")
    for link in (layout.trashed(base_id(1), RAW), layout.part(image_id(1))):
        link.symlink_to(outside)
        foreign.append(link)
    for folder in (layout.ingest / f"{image_id(2)}.part", layout.instances_dir / "nobodys"):
        folder.mkdir()
        foreign.append(folder)
    plan = await reconciled(rig)
    assert sorted(plan.unknown) == sorted(foreign)
    assert plan.remove_files == ()
    assert [each for each in foreign if not os.path.lexists(each)] == []
    assert outside.read_bytes() == b"left"
    assert rig.metric("unknown_files") == len(foreign)


async def test_catalog_is_made_anew_from_the_files(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """Without a catalog, bases and disks of every kind are found again, and serve as before."""
    made = {
        disk_key(1): of(image),
        disk_key(2): of(image, mode=DiskMode.FULL),
        disk_key(3): of(image, mode=DiskMode.FULL, format=RAW),
        disk_key(4): of(None),
        disk_key(5): of(None, format=RAW, filesystem=FileSystem.EXT4),
    }
    before = {key: (await rig.disks.create(key, spec, NOBODY))[0] for key, spec in made.items()}
    await forget_everything(rig)
    plan = await reconciled(rig)
    assert (len(plan.adopt_bases), len(plan.adopt_disks)) == (1, len(made))
    for key, view in before.items():
        after = await rig.disks.show(key)
        assert (after.path, after.disk.format) == (view.path, view.disk.format)
        assert (after.disk.virtual_size, after.disk.state) == (2 * MIB, DiskState.READY)
    overlay = (await rig.disks.show(disk_key(1))).disk
    assert (overlay.mode, overlay.base_id) == (DiskMode.OVERLAY, base.base_id)
    assert {(await rig.disks.show(disk_key(n))).disk.base_id for n in range(2, 6)} == {None}
    assert await rig.use.proved(base) == await recorded(rig, base)
    assert [user.key for user in await recorded(rig, base)] == [disk_key(1)]
    await rig.bases.ensure(image, NOBODY)
    assert len(glance.calls("data")) == 1


async def test_overlay_made_by_hand_is_adopted(rig: Rig, base: Base) -> None:
    """A disk that somebody laid where ours lie, backed by a base of ours, is one of ours."""
    path = rig.layout.disk(KEY, QCOW2)
    path.parent.mkdir()
    backing = os.path.relpath(rig.layout.base(base.base_id, base.format), path.parent)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, str(path)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    await reconciled(rig)
    adopted = (await rig.disks.show(KEY)).disk
    assert (adopted.mode, adopted.base_id, adopted.spec) == (DiskMode.OVERLAY, base.base_id, None)
    assert adopted.virtual_size == MIB


async def test_eviction_that_was_begun_is_taken_back(rig: Rig, image: ImageId, base: Base) -> None:
    """A base whose file had not gone yet is there again."""
    assert await rig.parts.catalog.begin_eviction(base.base_id, NOW) == ()
    await reconciled(rig)
    assert await rig.bases.ready(image) is not None


async def test_eviction_that_came_to_the_file_is_finished(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """A base whose file had gone is gone, with all that was left of it."""
    await make(rig, image)
    await rig.disks.delete(KEY)
    assert await rig.parts.catalog.begin_eviction(base.base_id, NOW) == ()
    layout = rig.layout
    layout.base(base.base_id, base.format).rename(layout.trashed(base.base_id, base.format))
    await reconciled(rig)
    assert await rig.parts.catalog.bases() == []
    assert await rig.parts.catalog.images() == []
    for folder in (layout.bases, layout.trash, layout.templates):
        assert list(folder.iterdir()) == []
    assert (await rig.bases.ensure(image, NOBODY)).base.state is BaseState.READY
    assert len(glance.calls("data")) == 2


@pytest.mark.parametrize("catalog", ["kept", "lost"])
@pytest.mark.parametrize("who", ["overlay", "link", "scan folder"])
async def test_base_in_the_trash_that_is_used_comes_back(
    tmp_path: Path, glance: LyingGlance, image: ImageId, who: str, catalog: str
) -> None:
    """Whoever began to use a base just before the agent died in its eviction keeps it."""
    scanned = tmp_path / "scanned"
    put(scanned / "notes")
    storage = {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(scanned)]}
    async with in_a_task(rig_on(tmp_path, glance.url, storage=storage)) as rig:
        base = (await rig.bases.ensure(image, NOBODY)).base
        path = rig.layout.base(base.base_id, base.format)
        match who:
            case "overlay":
                write_overlay(rig.layout.disk(KEY, QCOW2), path)
            case "scan folder":
                write_overlay(scanned / "disk.qcow2", path)
            case _:
                (tmp_path / "second name").hardlink_to(path)
        await rig.parts.catalog.begin_eviction(base.base_id, NOW)
        await rig.parts.store.trash_base(base.base_id, base.format)
        if catalog == "lost":
            await forget_everything(rig)
        plan = await reconciled(rig)
        assert plan.restore_bases == ((base.base_id, base.format),)
        assert path.read_bytes() == DATA
        assert list(rig.layout.trash.iterdir()) == []
        assert (await rig.bases.ensure(image, NOBODY)).result is CacheResult.HIT


async def test_damaged_base_that_nobody_knows_any_more_is_removed(rig: Rig, base: Base) -> None:
    """Quarantine holds what a row says is damaged, and nothing else of ours."""
    await rig.parts.catalog.set_base_state(base.base_id, BaseState.QUARANTINED)
    quarantined = rig.layout.quarantined(base.base_id, base.format)
    other = put(rig.layout.quarantine / "precious")
    assert (await reconciled(rig)).quarantine_bases == ((base.base_id, base.format),)
    assert quarantined.read_bytes() == DATA
    await rig.parts.catalog.remove_base(base.base_id)
    await reconciled(rig)
    assert list(rig.layout.quarantine.iterdir()) == [other]


async def test_leases_of_the_dead_are_dropped(rig: Rig, base: Base) -> None:
    """Nobody who held a lease before the start is there to release it."""
    until_later = rig.clock.time() + timedelta(hours=1)
    await rig.parts.catalog.lease(
        Lease(lease_id="1", base_id=base.base_id, holder="somebody", expires_at=until_later)
    )
    await rig.reconcile.run(NOW)
    assert await rig.parts.catalog.leases(rig.clock.time()) == []


async def test_manifest_that_was_lost_is_written_again(rig: Rig, image: ImageId) -> None:
    """A base whose manifest somebody removed outlives the next loss of the catalog."""
    base = (await rig.bases.ensure(image, NOBODY)).base
    rig.layout.manifest(base.base_id, base.format).unlink()
    assert (await reconciled(rig)).write_manifests == (base.base_id,)
    await forget_everything(rig)
    assert len((await reconciled(rig)).adopt_images) == 1
    assert await rig.bases.ready(image) is not None


async def test_full_disk_keeps_no_start_from_mending(
    rig: Rig, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the catalog finds no room, useless files go first, and then it is tried again."""
    part = put(rig.layout.part(image_id(1)))
    mend = rig.parts.catalog.mend
    refusals = [DiskFullError(required_bytes=1, available_bytes=0)]

    async def full_at_first(plan: DriftPlan, now: datetime, why: str) -> None:
        if refusals:
            raise refusals.pop()
        assert not await rig.parts.store.exists(part)
        await mend(plan, now, why)

    monkeypatch.setattr(rig.parts.catalog, "mend", full_at_first)
    rig.layout.base(base.base_id, base.format).unlink()
    await reconciled(rig)
    assert await rig.parts.catalog.bases() == []


async def test_base_without_a_file_is_forgotten(rig: Rig, image: ImageId, base: Base) -> None:
    """A base that somebody removed is no hit any more, though a copy was made from it."""
    path = await make(rig, image, mode=DiskMode.FULL)
    rig.layout.base(base.base_id, base.format).unlink()
    await reconciled(rig)
    assert await rig.parts.catalog.bases() == []
    assert (await rig.disks.show(KEY)).disk.base_id == base.base_id
    assert path.exists()


@pytest.mark.parametrize("later", [False, True], ids=["at the start", "in a round"])
async def test_base_that_cannot_be_looked_at_is_kept(
    rig: Rig, image: ImageId, base: Base, monkeypatch: pytest.MonkeyPatch, *, later: bool
) -> None:
    """One bad inode neither stops a start, nor costs the base, nor keeps the rest from mending."""
    await make(rig, image)
    gone = await rig.disks.create(disk_key(2), of(image), NOBODY)
    gone[0].path.unlink()
    path, look = rig.layout.base(base.base_id, base.format), Path.lstat

    def fail(of_path: Path) -> os.stat_result:
        if of_path == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(of_path)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "lstat", fail)
        await (rig.reconcile.check if later else rig.reconcile.run)(NOW)
    assert (await rig.bases.ensure(image, NOBODY)).result is CacheResult.HIT
    assert [disk.key for disk in await rig.parts.catalog.disks()] == [KEY]
    assert rig.layout.manifest(base.base_id, base.format).exists()


async def test_base_that_disks_need_is_fetched_anew(
    rig: Rig, glance: LyingGlance, image: ImageId, base: Base
) -> None:
    """A base that somebody removed, or truncated, while no agent ran comes back by itself."""
    await make(rig, image)
    rig.layout.base(base.base_id, base.format).unlink()
    plan = await rig.reconcile.run(NOW)
    assert plan.lost_bases == (base.base_id,)
    await until(lambda: rig.layout.base(base.base_id, base.format).exists())
    assert len(glance.calls("data")) == 2


async def test_base_without_a_manifest_is_no_base(rig: Rig) -> None:
    """A file with the name of a base, of which nobody knows that it was proved, is never used."""
    stray = put(rig.layout.base(base_id(3), RAW))
    plan = await reconciled(rig)
    assert plan.strays == (stray,)
    assert stray.exists()
    assert await rig.parts.catalog.bases() == []
    assert rig.metric("unknown_files") == 1


async def test_disk_that_was_not_made_has_failed(rig: Rig, image: ImageId, base: Base) -> None:
    """A disk whose making died with the daemon says so, and the same request makes it."""
    pending = disk(KEY, None, state=DiskState.PENDING, image_id=image, base_id=base.base_id)
    await rig.parts.catalog.begin_disk(pending)
    put(rig.layout.unfinished_disk(KEY, QCOW2))
    await reconciled(rig)
    failed = (await rig.disks.show(KEY)).disk
    assert (failed.state, "ask for it again" in str(failed.error)) == (DiskState.FAILED, True)
    assert await make(rig, image) == rig.layout.disk(KEY, QCOW2)


async def test_disk_whose_file_was_complete_is_ready(rig: Rig, image: ImageId) -> None:
    """A crash after the last step but one costs nothing."""
    await make(rig, image)
    ready = (await rig.disks.show(KEY)).disk
    await rig.parts.catalog.remove_disk(KEY, NOW)
    await rig.parts.catalog.begin_disk(ready)
    await reconciled(rig)
    assert (await rig.disks.show(KEY)).disk == ready


async def test_disk_without_a_file_is_forgotten(rig: Rig, image: ImageId) -> None:
    """A disk that somebody removed by hand is gone, and its base is free."""
    path = await make(rig, image)
    await make(rig, image, disk_key(2))
    path.unlink()
    await reconciled(rig)
    assert list(dict(await gathered(rig.disks.instances()))) == [disk_key(2).instance_id]


@pytest.mark.parametrize("how", ["away", "linked", "unmounted"])
async def test_disks_that_cannot_be_looked_at_are_kept(
    rig: Rig, image: ImageId, tmp_path: Path, how: str
) -> None:
    """Where the folder of an instance cannot be seen, nobody concludes that its disks are gone."""
    path = await make(rig, image)
    match how:
        case "away":  # nothing is mounted where the instances were
            rig.layout.instances_dir.rename(tmp_path / "mounted")
            rig.layout.instances_dir.mkdir()
        case "linked":  # moved to a larger disk
            path.parent.rename(tmp_path / "instance")
            path.parent.symlink_to(tmp_path / "instance")
        case _:  # moved there, and that is not mounted
            path.parent.rename(tmp_path / "instance")
            path.parent.symlink_to(tmp_path / "nowhere")
    await rig.reconcile.run(NOW)
    assert (await rig.disks.show(KEY)).disk.state is DiskState.READY
    assert rig.metric("unknown_files") == 0


async def test_what_was_coming_comes(rig: Rig, glance: LyingGlance, image: ImageId) -> None:
    """A download that nobody waits for any more goes on by itself after a start."""
    await rig.parts.catalog.intend_image(await rig.parts.glance.show(image, NOBODY), NOW)
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    part = put(rig.layout.part(image))
    plan = await rig.reconcile.run(NOW)
    assert plan.resume_ingests == (image,)
    assert part.exists()
    await until(lambda: glance.calls("data"))
    gate.set()
    await until(lambda: not rig.bases.coming())
    assert await rig.bases.ready(image) is not None
    assert rig.left_in_ingest() == []


async def test_removal_that_was_cut_off_is_ended(rig: Rig, image: ImageId) -> None:
    """A disk whose file went, and the daemon with it, leaves neither a row nor a folder."""
    path = await make(rig, image)
    await make(rig, image, disk_key(2))
    path.unlink()
    assert (await reconciled(rig)).drop_disk_rows == (KEY,)
    assert not path.parent.exists()


async def test_folder_that_cannot_be_removed_is_left(rig: Rig, image: ImageId) -> None:
    """What somebody put at the place of an instance's folder stops no start."""
    path = await make(rig, image)
    await make(rig, image, disk_key(2))
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"a file")
    assert (await reconciled(rig)).drop_disk_rows == (KEY,)
    assert path.parent.read_bytes() == b"a file"
