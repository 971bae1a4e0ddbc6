"""An empty folder of instances: known, or a mount point without its file system."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from cacheagent.model import Caller, DiskSpec
from tests.fakes.values import disk_key
from tests.needs import require_programs

if TYPE_CHECKING:
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

NOBODY = Caller()
KEY = disk_key(1)


async def made(rig: Rig, glance: LyingGlance) -> None:
    """Make a disk, the only one."""
    require_programs("qemu-img")
    spec = DiskSpec(image_id=glance.add(b"x" * 4096), size=None)
    await rig.disks.create(KEY, spec, NOBODY)


async def test_the_only_disk_can_be_lost(rig: Rig, glance: LyingGlance) -> None:
    """In the folder where disks were made, a disk that is gone is gone, were it the last one."""
    await made(rig, glance)
    shutil.rmtree(rig.layout.instance(KEY.instance_id))
    plan = await rig.reconcile.run(rig.parts.now())
    assert plan.drop_disk_rows == (KEY,)
    assert await rig.parts.catalog.disks() == []


async def test_another_folder_of_the_same_name_is_a_doubt(rig: Rig, glance: LyingGlance) -> None:
    """What a mount covers is another folder: disks that are not seen in it may be behind it."""
    await made(rig, glance)
    folder = rig.layout.instances_dir
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    plan = await rig.reconcile.run(rig.parts.now())
    assert (plan.drop_disk_rows, plan.doubtful_disks) == ((), (KEY,))
    assert not await rig.creation.notice(KEY)
    assert [disk.key for disk in await rig.parts.catalog.disks()] == [KEY]
