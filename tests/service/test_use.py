"""Who uses a base: everybody who may, and every doubt."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import Caller, DiskSpec, User, UserKind
from tests.fakes.values import NOW, disk_key
from tests.needs import require_programs
from tests.qemuio import opened_by_qemu
from tests.service.rig import Rig, in_a_task, rig_on

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Base
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
NOBODY = Caller()


@pytest.fixture
async def base(rig: Rig, glance: LyingGlance) -> Base:
    """Bring a base in."""
    require_programs("qemu-img")
    return (await rig.bases.ensure(glance.add(b"x" * MIB), NOBODY)).base


def path_of(rig: Rig, base: Base) -> Path:
    """Give the file of a base."""
    return rig.layout.base(base.base_id, base.format)


async def overlay(path: Path, backing: str) -> Path:
    """Make an overlay by hand, whatever the name of its backing file means."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing]
    await asyncio.to_thread(subprocess.run, [*command, str(path), str(MIB)], check=True)
    return path


async def test_nobody_uses_what_was_only_fetched(rig: Rig, base: Base) -> None:
    """A base that came and was never used may go."""
    assert await rig.use.proved(base) == ()


async def test_disk_of_ours_is_named_once(rig: Rig, glance: LyingGlance, base: Base) -> None:
    """A disk that catalog and folder tell of is one user, by its name."""
    (image_id,) = glance.images
    key = disk_key(1)
    await rig.disks.create(key, DiskSpec(image_id=image_id, size=None), NOBODY)
    assert await rig.use.proved(base) == (User(kind=UserKind.DISK, key=key),)


async def test_pin_is_a_user(rig: Rig, glance: LyingGlance, base: Base) -> None:
    """What an operator pinned is in use, by the image that is pinned."""
    (image_id,) = glance.images
    await rig.parts.catalog.pin(image_id, NOW)
    assert await rig.use.proved(base) == (User(kind=UserKind.PIN, detail=image_id),)


@pytest.mark.parametrize(
    "name",
    ["absolute", "relative", "detour", "link", "json", "json-escaped", "protocol", "json-nested"],
)
async def test_overlay_made_by_hand_is_found(
    rig: Rig, base: Base, tmp_path: Path, name: str
) -> None:
    """Whatever way an overlay names the base, it keeps it."""
    path = rig.layout.instances_dir / "by-hand" / "disk"
    target = path_of(rig, base)
    (tmp_path / "link").symlink_to(rig.layout.bases)
    escaped = f"{target}".replace("sha512", "sh\\u0061512")
    names = {
        "absolute": str(target),
        "relative": os.path.relpath(target, path.parent),
        "detour": f"{target.parent}/../bases/./{target.name}",
        "link": str(tmp_path / "link" / target.name),
        "json": "json:" + json.dumps({"driver": "file", "filename": str(target)}),
        "json-escaped": f'json:{{"driver":"file","filename":"{escaped}"}}',
        "json-nested": "json:" + json.dumps({"file.filename": str(target), "driver": "raw"}),
        "protocol": f"file:{target}",
    }
    await overlay(path, names[name])
    assert await rig.use.proved(base) == (User(kind=UserKind.OVERLAY, path=path),)


async def test_overlay_of_something_else_is_no_user(rig: Rig, base: Base) -> None:
    """A base is not kept by those who use another one, nor by files that are no overlays."""
    folder = rig.layout.instances_dir / "by-hand"
    other = path_of(rig, base).with_name("other.raw")
    await overlay(folder / "absolute", str(other))
    await overlay(folder / "relative", other.name)
    await overlay(folder / "json", "json:" + json.dumps({"driver": "file", "filename": str(other)}))
    (folder / "notes").write_text(str(path_of(rig, base)))
    os.mkfifo(folder / "pipe")
    assert await rig.use.proved(base) == ()


async def test_other_folders_are_looked_through(tmp_path: Path, glance: LyingGlance) -> None:
    """Instances that another manager makes keep our bases too, if it is known where they lie."""
    require_programs("qemu-img")
    other = tmp_path / "other"
    (other / "lost+found").mkdir(parents=True)
    storage = {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(other)]}
    async with in_a_task(rig_on(tmp_path, glance.url, storage=storage)) as rig:
        base = (await rig.bases.ensure(glance.add(b"x" * MIB), NOBODY)).base
        assert await rig.use.proved(base) == ()
        path = await overlay(other / "deep" / "down" / "disk", str(path_of(rig, base)))
        assert await rig.use.proved(base) == (User(kind=UserKind.OVERLAY, path=path),)
        # Not there, or not mounted: nobody knows what uses it.
        other.rename(tmp_path / "away")
        (absent,) = await rig.use.proved(base)
        other.mkdir()
        (empty,) = await rig.use.proved(base)
    assert absent.path == empty.path == other
    assert "cannot be read" in str(absent.detail)
    assert "mount point" in str(empty.detail)


async def test_file_that_cannot_be_read_is_a_doubt(rig: Rig, base: Base) -> None:
    """What may be an overlay and cannot be looked at keeps the base."""
    loop = rig.layout.instances_dir / "loop"
    loop.symlink_to(loop)
    (doubt,) = await rig.use.proved(base)
    assert (doubt.kind, doubt.path) == (UserKind.DOUBT, loop)
    assert "cannot be read" in str(doubt.detail)


async def test_link_that_leads_nowhere_is_a_doubt(rig: Rig, base: Base, tmp_path: Path) -> None:
    """An instance on a volume that is not mounted now keeps what its overlays may need."""
    (rig.layout.instances_dir / "volume").symlink_to(tmp_path / "not-mounted")
    (doubt,) = await rig.use.proved(base)
    assert "leads nowhere" in str(doubt.detail)


async def test_overlay_behind_a_link_is_found(rig: Rig, base: Base, tmp_path: Path) -> None:
    """An instance whose folder was moved elsewhere, and linked, still uses its base."""
    await overlay(tmp_path / "moved" / "disk", str(path_of(rig, base)))
    (rig.layout.instances_dir / "linked").symlink_to(tmp_path / "moved")
    (rig.layout.instances_dir / "round").symlink_to(rig.layout.instances_dir)
    users = await rig.use.proved(base)
    assert users == (
        User(kind=UserKind.OVERLAY, path=rig.layout.instances_dir / "linked" / "disk"),
    )


@pytest.mark.allow_blocking
async def test_qemu_that_has_it_open_is_a_user(rig: Rig, base: Base, tmp_path: Path) -> None:
    """A guest whose overlay lies where nobody looks holds the base by QEMU's own locks."""
    path = path_of(rig, base)
    held = (User(kind=UserKind.QEMU, path=path),)
    with opened_by_qemu("-r", "-f", "raw", str(path)):
        assert await rig.use.proved(base) == held
    assert await rig.use.proved(base) == ()
    elsewhere = await overlay(tmp_path / "elsewhere" / "disk", str(path))
    with opened_by_qemu("-f", "qcow2", str(elsewhere)):
        assert await rig.use.proved(base) == held
    assert await rig.use.proved(base) == ()


async def test_base_that_cannot_be_asked_is_in_doubt(rig: Rig, base: Base) -> None:
    """Where the kernel cannot tell who has a file open, somebody may."""
    path_of(rig, base).unlink()
    (doubt,) = await rig.use.proved(base)
    assert doubt.kind is UserKind.DOUBT
    assert "No such file" in str(doubt.detail)
