"""The list of instances comes in pages: whole, and each of them once."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from tests.fakes.values import NOW, disk, disk_key

if TYPE_CHECKING:
    from cacheagent.model import InstanceId
    from tests.service.rig import Rig

MANY = 200


async def add(rig: Rig, numbers: range) -> set[InstanceId]:
    """Record instances with one disk each, of a base that is not here."""
    disks = [disk(disk_key(number), 1) for number in numbers]
    await rig.parts.catalog.adopt(disks=disks)
    return {each.key.instance_id for each in disks}


async def test_list_is_whole_whatever_changes_meanwhile(rig: Rig) -> None:
    """What was there all the time is in the list once, whatever comes and goes between pages."""
    stay = await add(rig, range(MANY))
    await add(rig, range(MANY, 2 * MANY))
    seen: list[InstanceId] = []
    async with aclosing(rig.disks.instances()) as instances:
        async for instance_id, disks in instances:
            if not seen:
                for number in range(MANY, 2 * MANY):
                    await rig.parts.catalog.remove_disk(disk_key(number), NOW)
                await add(rig, range(2 * MANY, 3 * MANY))
            assert [each.disk.key.instance_id for each in disks] == [instance_id]
            seen.append(instance_id)
    assert seen == sorted(set(seen))
    assert stay <= set(seen)
