"""Full copies may take long: what becomes of them when somebody does not wait for their end."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.errors import DiskConflictError, ShuttingDownError
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec, DiskState
from tests.e2e.gate import gated
from tests.fakes.sandboxes import BUBBLEWRAP
from tests.fakes.values import disk_key
from tests.needs import require_bubblewrap, require_programs
from tests.service.rig import assert_no_trace, in_a_task, rig_on, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cacheagent.backends.catalog.claims import Claim
    from cacheagent.model import ImageId
    from tests.e2e.gate import Gate
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

MIB = 1 << 20
NOBODY = Caller()
KEY = disk_key(1)


@pytest.fixture
def image_id(glance: LyingGlance) -> ImageId:
    """Give an image."""
    return glance.add(b"data" * (MIB // 4))


@pytest.fixture
def copying(tmp_path: Path) -> Iterator[Gate]:
    """Give a qemu-img that waits before it copies a base."""
    require_programs("qemu-img")
    with gated(tmp_path, "convert*") as gate:
        yield gate


@pytest.fixture
async def slow(tmp_path: Path, glance: LyingGlance, copying: Gate) -> AsyncIterator[Rig]:
    """Wire services that use it."""
    qemu = {"qemu_img": str(copying.program)}
    async with in_a_task(rig_on(tmp_path, glance.url, qemu=qemu)) as wired:
        yield wired


def copy_of(image_id: ImageId) -> DiskSpec:
    """Ask for a disk that is independent of the image's base."""
    return DiskSpec(image_id=image_id, size=None, mode=DiskMode.FULL)


async def test_copy_that_nobody_waits_for_ends(slow: Rig, copying: Gate, image_id: ImageId) -> None:
    """A full copy may take minutes: it is given up with its last caller, and leaves no trace."""
    creation = asyncio.create_task(slow.disks.create(KEY, copy_of(image_id), NOBODY))
    await copying.reached()
    creation.cancel()
    await asyncio.wait({creation})
    await assert_no_trace(slow, KEY)
    assert slow.parts.disk_room.reserved == 0


async def test_copy_of_a_disk_that_is_deleted_ends(
    slow: Rig, copying: Gate, image_id: ImageId
) -> None:
    """A delete does not wait for a full copy, and whoever waited for it is told."""
    creation = asyncio.create_task(slow.disks.create(KEY, copy_of(image_id), NOBODY))
    await copying.reached()
    await slow.disks.delete(KEY)
    with pytest.raises(DiskConflictError, match="deleted"):
        await creation
    await assert_no_trace(slow, KEY)


@pytest.mark.parametrize("shut_in", [False, True])
@pytest.mark.parametrize(
    ("mode", "disk_format"),
    [
        (DiskMode.OVERLAY, DiskFormat.QCOW2),
        (DiskMode.FULL, DiskFormat.QCOW2),
        (DiskMode.FULL, DiskFormat.RAW),
    ],
)
async def test_base_that_is_found_damaged_just_then_comes_anew(
    rig: Rig,
    glance: LyingGlance,
    image_id: ImageId,
    monkeypatch: pytest.MonkeyPatch,
    mode: DiskMode,
    disk_format: DiskFormat,
    *,
    shut_in: bool,
) -> None:
    """Whoever asks for the disk waits a little longer, and hears nothing of it."""
    require_programs("qemu-img")
    if shut_in:
        require_bubblewrap()
        monkeypatch.setattr(rig.parts.qemu, "_sandbox", BUBBLEWRAP)
    spec = DiskSpec(image_id=image_id, size=None, mode=mode, format=disk_format)
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    claim_disk, todo = rig.parts.catalog.claim_disk, [base]

    async def damage_then(*arguments: Any) -> Claim:  # noqa: ANN401 -- those of the catalog
        claim = await claim_disk(*arguments)
        assert (claim.intent is not None) == bool(todo)
        if todo:
            rig.clock.now += 1
            await rig.repair.damaged(todo.pop(), "a test says so")
        return claim

    monkeypatch.setattr(rig.parts.catalog, "claim_disk", damage_then)
    view, created = await rig.disks.create(KEY, spec, NOBODY)
    assert created
    assert view.path.exists()
    assert rig.layout.base(base.base_id, base.format).exists()
    assert len(glance.calls("data")) == 2


async def test_copy_of_a_base_that_is_found_damaged_meanwhile_is_made_again(
    rig: Rig, glance: LyingGlance, image_id: ImageId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the damaged file becomes nobody's disk."""
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    path = rig.layout.base(base.base_id, base.format)
    path.chmod(0o640)
    path.write_bytes(b"rot!" * (MIB // 4))
    copy, todo = rig.parts.store.copy_base, [base]

    async def copy_then(source: Path, target: Path, size: int) -> None:
        await copy(source, target, size)
        if todo:
            rig.clock.now += 1
            await rig.repair.damaged(todo.pop(), "a test says so")

    monkeypatch.setattr(rig.parts.store, "copy_base", copy_then)
    view, _ = await rig.disks.create(KEY, replace(copy_of(image_id), format=DiskFormat.RAW), NOBODY)
    assert view.path.read_bytes() == b"data" * (MIB // 4)
    assert len(glance.calls("data")) == 2


async def test_copy_of_a_base_that_was_cut_is_made_of_a_whole_one(
    rig: Rig, glance: LyingGlance, image_id: ImageId
) -> None:
    """A base that somebody cut, before anybody noticed, becomes nobody's disk."""
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    path = rig.layout.base(base.base_id, base.format)
    path.chmod(0o640)
    os.truncate(path, 4096)
    view, _ = await rig.disks.create(KEY, replace(copy_of(image_id), format=DiskFormat.RAW), NOBODY)
    assert view.path.read_bytes() == b"data" * (MIB // 4)
    assert len(glance.calls("data")) == 2


@pytest.mark.parametrize("begun", [True, False])
async def test_stop_does_not_wait_for_a_copy_for_ever(
    slow: Rig, copying: Gate, image_id: ImageId, *, begun: bool
) -> None:
    """What is not made in the time that a stop takes is given up, and whoever waits is told."""
    if begun:
        await slow.disks.begin(KEY, copy_of(image_id), NOBODY)
    waiting = asyncio.create_task(slow.disks.create(KEY, copy_of(image_id), NOBODY))
    await copying.reached()
    await slow.creation.stop(0)
    with pytest.raises(ShuttingDownError):
        await waiting
    with pytest.raises(ShuttingDownError):
        await slow.disks.create(disk_key(2), DiskSpec(image_id=None, size=MIB), NOBODY)
    assert not slow.layout.instance(KEY.instance_id).exists()
    if begun:
        # The next start says that it failed: see the tests of the reconciliation.
        assert await state_of(slow, KEY) is DiskState.PENDING
    else:
        await assert_no_trace(slow, KEY)
