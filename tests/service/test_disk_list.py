"""The list of instances comes in pages: whole, and each of them once."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from tests.fakes.values import NOW, base, base_id, disk, disk_key, glance_image, instance_id
from tests.service.rig import gathered

if TYPE_CHECKING:
    from collections.abc import Collection

    import pytest

    from cacheagent.model import Base, BaseId, InstanceId
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


async def test_list_asks_for_each_base_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each disk comes with its base, and what is lost is not looked for again with each page."""
    await rig.parts.catalog.publish(base(1), [glance_image(1)], NOW)
    here, lost, blank = (range(first, MANY, 3) for first in range(3))
    kinds = [(here, 1), (lost, 2), (blank, None)]
    rows = [disk(disk_key(each), number) for numbers, number in kinds for each in numbers]
    await rig.parts.catalog.adopt(disks=rows)
    asked: list[BaseId] = []
    bases_named = rig.parts.catalog.bases_named

    async def noted(base_ids: Collection[BaseId]) -> list[Base]:
        asked.extend(base_ids)
        return await bases_named(base_ids)

    monkeypatch.setattr(rig.parts.catalog, "bases_named", noted)
    listed = dict(await gathered(rig.disks.instances()))
    assert {key for key, (view,) in listed.items() if view.base == base(1)} == {
        instance_id(number) for number in here
    }
    assert sorted(asked) == [base_id(1), base_id(2)]
    for number in (0, 1, 2):
        assert list(await rig.disks.instance(instance_id(number))) == listed[instance_id(number)]
