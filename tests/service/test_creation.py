"""One disk for each name: nobody gets another one, whoever goes away or removes it meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import DiskConflictError
from cacheagent.model import Caller, DiskSpec
from tests.fakes.values import disk_key

if TYPE_CHECKING:
    from tests.service.rig import Rig

MIB = 1 << 20
NOBODY = Caller()
KEY = disk_key(1)
SMALL, LARGE = (DiskSpec(image_id=None, size=size * MIB) for size in (1, 2))


async def turns() -> None:
    """Let everybody go on as far as it gets without a thread."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("qemu_img")
async def test_who_asks_while_an_earlier_request_is_given_up_gets_its_own_disk(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that ask for different disks by one name, one gets its disk, the other a conflict."""
    winding_down, gate = asyncio.Event(), asyncio.Event()
    give_up = rig.creation._give_up  # noqa: SLF001 -- there is no other way to be so slow

    async def slow(*what: object) -> None:
        winding_down.set()
        await gate.wait()
        await give_up(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.creation, "_give_up", slow)
    claim = rig.parts.catalog.claim_disk
    claiming, going = asyncio.Event(), asyncio.Event()

    async def held(*what: object) -> object:
        claiming.set()
        await going.wait()
        return await claim(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.parts.catalog, "claim_disk", held)
    leaving = asyncio.create_task(rig.creation.create(KEY, SMALL, NOBODY))
    await claiming.wait()
    leaving.cancel()
    await winding_down.wait()
    waiting = asyncio.create_task(rig.creation.create(KEY, SMALL, NOBODY))
    await turns()
    claiming.clear()
    gate.set()
    await claiming.wait()
    other = asyncio.create_task(rig.creation.create(KEY, LARGE, NOBODY))
    await turns()
    going.set()
    assert (await waiting).disk.spec == SMALL
    with pytest.raises(DiskConflictError):
        await other
    assert rig.creation.wanted() == {}


async def test_request_that_is_given_up_twice_leaves_its_name_free(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that does not even wait for the end of its request leaves nothing behind."""
    winding_down, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    give_up = rig.creation._give_up  # noqa: SLF001 -- there is no other way to be so slow

    async def slow(*what: object) -> None:
        winding_down.set()
        await gate.wait()
        await give_up(*what)  # type: ignore[arg-type]
        ended.set()

    async def held(*_: object) -> None:
        claiming.set()
        await asyncio.Event().wait()

    claiming = asyncio.Event()
    monkeypatch.setattr(rig.creation, "_give_up", slow)
    monkeypatch.setattr(rig.parts.catalog, "claim_disk", held)
    leaving = asyncio.create_task(rig.creation.create(KEY, SMALL, NOBODY))
    await claiming.wait()
    for _ in range(2):
        leaving.cancel()
        await winding_down.wait()
        await turns()
    await asyncio.wait({leaving})
    assert rig.creation.wanted() == {KEY: SMALL}
    gate.set()
    await ended.wait()
    await turns()
    assert rig.creation.wanted() == {}
