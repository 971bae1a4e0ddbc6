"""Events, for those who may know of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import UnauthenticatedError
from cacheagent.model import Caller, DiskSpec
from cacheagent.service import following
from cacheagent.service.events import EventKind
from cacheagent.service.following import Following
from cacheagent.service.tenancy import TenantDisks
from tests.fakes import lying_glance
from tests.fakes.values import disk_key, image_id
from tests.service.rig import until

if TYPE_CHECKING:
    from aiohttp import web

    from tests.fakes.lying_glance import Exchange, LyingGlance
    from tests.service.rig import Rig

NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
LONG_AGO = "00000000-0"
"""No run of a daemon has this id: all that is remembered comes, behind a word of the rest."""


def followed(rig: Rig) -> Following:
    """Give the events as the API gives them."""
    disks = TenantDisks(rig.parts, disks=rig.disks, access=rig.access, creation=rig.creation)
    return Following(rig.parts, access=rig.access, disks=disks)


async def told(rig: Rig, caller: Caller) -> list[tuple[EventKind, object]]:
    """Give all that happened, as the caller is told."""
    rig.parts.events.close()
    events = followed(rig).follow(LONG_AGO, caller)
    return [(event.kind, event.facts.get("number")) async for event in events]


async def test_an_operator_is_told_everything(rig: Rig) -> None:
    """Without a token nothing is left out, and nobody is asked."""
    rig.parts.events.emit(EventKind.PRUNE, number=1)
    rig.parts.events.emit(EventKind.DISK_GONE, number=2, image_id=image_id(1))
    assert await told(rig, NOBODY) == [
        (EventKind.MISSED, None),
        (EventKind.PRUNE, 1),
        (EventKind.DISK_GONE, 2),
    ]


async def test_a_tenant_is_told_of_its_images(rig: Rig, glance: LyingGlance) -> None:
    """Events of other images are left out, and those of none; what was missed is told."""
    mine, other = glance.add(b"mine"), glance.add(b"other")

    async def rights(exchange: Exchange) -> web.StreamResponse:
        code = 404 if f"/{other}/" in exchange.request.path else 200
        return await lying_glance.status(code)(exchange)

    glance.always("access", rights)
    emit = rig.parts.events.emit
    emit(EventKind.PRUNE, number=1)
    emit(EventKind.IMAGE_PUBLISHED, number=2, image_id=other)
    emit(EventKind.IMAGE_PUBLISHED, number=3, image_id=mine)
    emit(EventKind.BASE_EVICTED, number=4, image_id=None)
    emit(EventKind.BASE_EVICTED, number=5, image_id=mine)
    assert await told(rig, TENANT) == [
        (EventKind.MISSED, None),
        (EventKind.IMAGE_PUBLISHED, 3),
        (EventKind.BASE_EVICTED, 5),
    ]


@pytest.mark.usefixtures("qemu_img")
async def test_a_tenant_is_told_of_disks_of_its_instances(rig: Rig, glance: LyingGlance) -> None:
    """A public image tells nobody whose instances use it, nor an instance that has gone whose."""
    public, other = glance.add(b"public"), glance.add(b"other")

    async def rights(exchange: Exchange) -> web.StreamResponse:
        code = 404 if f"/{other}/" in exchange.request.path else 200
        return await lying_glance.status(code)(exchange)

    glance.always("access", rights)
    made = [(1, "root", public), (2, "root", other), (2, "data", public), (3, "root", public)]
    for number, name, image in made:
        await rig.disks.create(disk_key(number, name), DiskSpec(image_id=image, size=None), NOBODY)
    for number, name in ((2, "data"), (3, "root")):
        await rig.disks.delete(disk_key(number, name))
    rig.parts.events.close()
    seen = [event.facts async for event in followed(rig).follow(LONG_AGO, TENANT)]
    instances = {each.get("instance_id") for each in seen}
    assert instances == {None, disk_key(1).instance_id}


async def test_progress_does_not_ask_glance_each_time(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is remembered as long as a right, and some of them only."""
    monkeypatch.setattr(following, "NOES", 1)
    first, second = glance.add(b"first"), glance.add(b"second")
    glance.always("access", lying_glance.status(404))
    for wanted in (first, first, second, second, first):
        rig.parts.events.emit(EventKind.IMAGE_PROGRESS, image_id=wanted)
    assert await told(rig, TENANT) == [(EventKind.MISSED, None)]
    assert [seen.image_id for seen in glance.calls("access")] == [first, second, first]


async def test_a_refusal_is_not_believed_for_ever(rig: Rig, glance: LyingGlance) -> None:
    """A tenant that gets a right is told from then on."""
    wanted = glance.add(b"data")
    glance.lie("access", lying_glance.status(404))
    rig.parts.events.emit(EventKind.IMAGE_PROGRESS, number=1, image_id=wanted)
    events = followed(rig).follow(LONG_AGO, TENANT)
    assert (await anext(events)).kind is EventKind.MISSED
    going = asyncio.ensure_future(anext(events))
    await until(lambda: glance.calls("access"))
    await rig.parts.glance.show(wanted, NOBODY)  # the refusal came before this answer
    rig.clock.now += rig.parts.config().glance.access_ttl
    rig.parts.events.emit(EventKind.IMAGE_PROGRESS, number=2, image_id=wanted)
    assert (await going).facts["number"] == 2
    await events.aclose()


async def test_a_token_that_nobody_knows_ends_it(rig: Rig, glance: LyingGlance) -> None:
    """A token that has expired is not the same as nothing happening."""
    glance.accepts = {""}
    rig.parts.events.emit(EventKind.IMAGE_PROGRESS, image_id=glance.add(b"data"))
    with pytest.raises(UnauthenticatedError):
        await told(rig, TENANT)
