"""The list of images: for those who may see them, whatever one image is like."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import GlanceUnavailableError, UnauthenticatedError
from cacheagent.model import Caller, ImageId
from cacheagent.service import access
from tests.fakes import lying_glance
from tests.service.rig import gathered, until

if TYPE_CHECKING:
    from aiohttp import web

    from tests.fakes.lying_glance import Exchange, LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake


async def listed(rig: Rig) -> set[ImageId]:
    """Give the images that the tenant is shown."""
    return {view.image.image_id for view in await gathered(rig.images.list_images(TENANT))}


async def test_a_token_that_nobody_knows_is_refused(rig: Rig, glance: LyingGlance) -> None:
    """Whose token has expired learns that, and not that nothing is cached."""
    await rig.bases.ensure(glance.add(b"data"), NOBODY)
    glance.accepts = {""}
    with pytest.raises(UnauthenticatedError):
        await gathered(rig.images.list_images(TENANT))


async def test_one_broken_image_does_not_hide_the_others(rig: Rig, glance: LyingGlance) -> None:
    """An image whose data Glance has lost is left out for its tenants, and the rest is shown."""
    broken, whole = glance.add(b"broken"), glance.add(b"whole")
    for image_id in (broken, whole):
        await rig.bases.ensure(image_id, NOBODY)

    async def lost(exchange: Exchange) -> web.StreamResponse:
        code = 204 if f"/{broken}/" in exchange.request.path else 200
        return await lying_glance.status(code)(exchange)

    glance.always("access", lost)
    assert await listed(rig) == {whole}


async def test_glance_that_is_away_is_told(rig: Rig, glance: LyingGlance) -> None:
    """A list that cannot be had is not shown as an empty one."""
    await rig.bases.ensure(glance.add(b"data"), NOBODY)
    glance.always("access", lying_glance.status(503))
    with pytest.raises(GlanceUnavailableError):
        await gathered(rig.images.list_images(TENANT))


async def test_a_long_list_asks_for_some_at_a_time(rig: Rig, glance: LyingGlance) -> None:
    """Many images take neither one round trip each, nor all that Glance has."""
    found = {glance.add(bytes([number])) for number in range(2 * access.CHECKS + 1)}
    for image_id in found:
        await rig.bases.ensure(image_id, NOBODY)
    gate = asyncio.Event()
    glance.always("access", lying_glance.held(gate))
    listing = asyncio.ensure_future(listed(rig))
    await until(lambda: len(glance.calls("access")) >= access.CHECKS)
    # One that comes after them has its answer before any more of them are asked.
    await rig.parts.glance.show(min(found), NOBODY)
    assert len(glance.calls("access")) == access.CHECKS
    gate.set()
    assert await listing == found


async def test_many_lists_of_a_token_ask_no_more_than_one(rig: Rig, glance: LyingGlance) -> None:
    """Who asks for the list again and again has Glance asked once, and some images at a time."""
    found = [glance.add(bytes([number])) for number in range(2 * access.CHECKS + 1)]
    gate = asyncio.Event()
    glance.always("access", lying_glance.held(gate))
    orders = (found, found[::-1]) * 2
    lists = [asyncio.ensure_future(rig.access.allowed(each, TENANT)) for each in orders]
    await until(lambda: len(glance.calls("access")) >= access.CHECKS)
    # One that comes after them has its answer before any more of them are asked.
    await rig.parts.glance.show(found[0], NOBODY)
    assert len(glance.calls("access")) == access.CHECKS
    gate.set()
    assert await asyncio.gather(*lists) == [frozenset(found)] * 4
    assert await rig.access.allowed(found, TENANT) == frozenset(found)
    assert len(glance.calls("access")) == len(found)
