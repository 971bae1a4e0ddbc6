"""Many want room at once, or find none: as little goes as has to, and one pass tells for all."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import files
from cacheagent.errors import DiskFullError, InsufficientSpaceError, QemuImgError
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec
from tests.fakes.values import disk_key
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
BOUNDS = {"min_free": 0, "min_age": 0, "high_watermark": 100, "max_size": 20 * MIB}


@pytest.fixture
async def small(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire an agent whose cache holds twenty MiB."""
    async with in_a_task(rig_on(tmp_path, glance.url, eviction=BOUNDS)) as wired:
        yield wired


async def qcow2(folder: Path, size: int) -> bytes:
    """Give a qcow2 image of a disk that is full of data."""
    raw, path = folder / "disk.raw", folder / "disk.qcow2"
    await asyncio.to_thread(raw.write_bytes, os.urandom(size))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    done = await asyncio.create_subprocess_exec(*command)
    assert await done.wait() == 0
    return await asyncio.to_thread(path.read_bytes)


async def test_many_at_once_all_get_room(small: Rig, glance: LyingGlance) -> None:
    """Where each fits after an eviction, none of many that come together is refused."""
    for _ in range(20):
        await small.bases.ensure(glance.add(os.urandom(MIB)), NOBODY)
    images = [glance.add(os.urandom(MIB)) for _ in range(12)]
    await asyncio.gather(*(small.bases.ensure(each, NOBODY) for each in images))
    assert await small.parts.store.cache_bytes() <= 20 * MIB


async def test_what_a_conversion_has_written_is_not_set_aside_as_well(
    small: Rig, glance: LyingGlance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that comes while another is converted evicts nothing that could stay."""
    idle = (await small.bases.ensure(glance.add(os.urandom(MIB)), NOBODY)).base
    data = await qcow2(tmp_path, 8 * MIB)
    convert = small.parts.qemu.convert

    async def converting(*args: object, **named: object) -> None:
        await convert(*args, **named)  # type: ignore[arg-type]
        # Eight were downloaded and eight written: with the idle one and this it is nineteen.
        await small.bases.ensure(glance.add(os.urandom(2 * MIB)), NOBODY)

    monkeypatch.setattr(small.parts.qemu, "convert", converting)
    image_id = glance.add(data, disk_format="qcow2", virtual_size=8 * MIB)
    await small.bases.ensure(image_id, NOBODY)
    assert await small.parts.catalog.base(idle.base_id) is not None
    assert small.parts.room.reserved == 0


async def test_template_that_finds_the_disk_full_evicts(
    small: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that needs little, and nobody knows how much, is worth a base that is idle."""
    idle = (await small.bases.ensure(glance.add(os.urandom(MIB)), NOBODY)).base
    image_id = glance.add(os.urandom(MIB))
    create_overlay = small.parts.qemu.create_overlay

    async def creating(*args: object, **named: object) -> None:
        if await small.parts.catalog.base(idle.base_id) is not None:
            raise QemuImgError("No space left on device", no_space=True)
        await create_overlay(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(small.parts.qemu, "create_overlay", creating)
    _, made = await small.disks.create(disk_key(1), DiskSpec(image_id=image_id, size=None), NOBODY)
    assert made


async def test_requests_that_find_the_disk_full_together_share_a_pass(
    small: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty warm requests on a full file system cost one look at everything, not fifty."""
    image_id = glance.add(os.urandom(MIB))
    await small.bases.ensure(image_id, NOBODY)

    async def full(*_args: object, **_named: object) -> None:
        raise DiskFullError(required_bytes=4096, available_bytes=0)

    monkeypatch.setattr(small.parts.catalog, "lease_image", full)
    asked = (small.bases.ensure(image_id, NOBODY) for _ in range(50))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in answers} == {InsufficientSpaceError}
    assert small.metric("prune_runs_total", trigger="full", result="unmet") == 1


async def test_base_that_comes_back_has_the_format_that_it_had(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """A base that disks name stays what they name, whatever new ones are to be."""
    data = await qcow2(tmp_path, 2 * MIB)
    image_id = glance.add(data, disk_format="qcow2", virtual_size=2 * MIB)
    async with rig_on(tmp_path, glance.url) as rig:
        spec = DiskSpec(image_id=image_id, size=None)
        path = (await rig.disks.create(disk_key(1), spec, NOBODY))[0].base_path
    assert path is not None
    assert path.suffix == ".raw"
    await asyncio.to_thread(path.unlink)
    async with rig_on(tmp_path, glance.url, images={"base_format": "keep"}) as rig:
        base = (await rig.bases.ensure(image_id, NOBODY)).base
        assert rig.layout.base(base.base_id, base.format) == path
        other = await qcow2(tmp_path, MIB)
        fresh = glance.add(other, disk_format="qcow2", virtual_size=MIB)
        assert (await rig.bases.ensure(fresh, NOBODY)).base.format == "qcow2"


async def test_pass_does_not_wait_for_copies(
    small: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While whole disks are copied, which may take an hour, the cache keeps its bounds."""
    image_id = glance.add(os.urandom(MIB))
    await small.bases.ensure(image_id, NOBODY)
    clone, gate, copying = files.clone, threading.Event(), threading.Semaphore(0)

    def slow(source: Path, target: Path, is_stopped: Callable[[], bool]) -> None:
        copying.release()
        gate.wait()
        clone(source, target, is_stopped)

    monkeypatch.setattr(files, "clone", slow)
    spec = DiskSpec(image_id=image_id, size=None, format=DiskFormat.RAW, mode=DiskMode.FULL)
    made = asyncio.gather(*(small.disks.create(disk_key(n), spec, NOBODY) for n in range(2)))
    try:
        for _ in range(2):
            await asyncio.to_thread(copying.acquire)
        async with asyncio.timeout(30):
            done = await small.evictions.run("interval")
        assert done.plan.stay
    finally:
        gate.set()
        await made
