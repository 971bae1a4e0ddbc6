"""What Glance says of cached images counts: who is refused, who is served, what costs nothing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    CatalogError,
    DiskFullError,
    GlanceUnavailableError,
    ImageNotActiveError,
    ImageNotFoundError,
    OperatorOnlyError,
)
from cacheagent.model import CacheResult, Caller, DiskSpec, Standing
from cacheagent.service.events import EventKind
from cacheagent.service.revalidate import Revalidate
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.needs import require_programs

if TYPE_CHECKING:
    from cacheagent.model import DiskKey, ImageId
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

DATA = os.urandom(1 << 20)
NOBODY = Caller()


@pytest.fixture
def nudges() -> list[str]:
    """Count how often the pruner was asked for a pass."""
    return []


@pytest.fixture
def revalidate(rig: Rig, nudges: list[str]) -> Revalidate:
    """Give what is tested."""
    return Revalidate(rig.parts, lambda: nudges.append("pass"))


@pytest.fixture
async def cached(rig: Rig, glance: LyingGlance) -> ImageId:
    """Have a public image in the cache."""
    require_programs("qemu-img")
    return await bring(rig, glance.add(DATA))


async def bring(rig: Rig, image_id: ImageId) -> ImageId:
    """Bring the base of an image in."""
    await rig.bases.ensure(image_id, NOBODY)
    return image_id


async def standing_of(rig: Rig, image_id: ImageId) -> Standing:
    """Look at the row of an image."""
    cached = await rig.parts.catalog.image(image_id)
    assert cached is not None
    return cached.standing


async def disk_from(rig: Rig, image_id: ImageId, key: DiskKey) -> CacheResult:
    """Ask for a disk as a scheduler does, and tell what the request found."""
    view, _ = await rig.disks.create(key, DiskSpec(image_id=image_id, size=None), NOBODY)
    return view.disk.cache


async def test_nothing_changed_is_no_news(
    rig: Rig, revalidate: Revalidate, cached: ImageId, nudges: list[str]
) -> None:
    """An image that is what it was stays what it was."""
    assert await revalidate.run() == {}
    assert await standing_of(rig, cached) is Standing.ACTIVE
    assert nudges == []


async def test_image_that_was_published_is_known_as_public(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate
) -> None:
    """The right to it tells of nobody from then on, so that no stranger evicts it, or its disks."""
    require_programs("qemu-img")
    image_id = await bring(rig, glance.add(DATA, visibility="private"))
    before = await rig.parts.catalog.image(image_id)
    glance.images[image_id].metadata["visibility"] = "public"
    assert await revalidate.run() == {}
    after = await rig.parts.catalog.image(image_id)
    assert before is not None
    assert after == replace(before, image=replace(before.image, visibility="public"))
    tenant = Caller(token="tenant")  # noqa: S106 -- the fake takes any
    with pytest.raises(OperatorOnlyError):
        await rig.images.evict(image_id, tenant)


async def test_deactivated_image_is_not_handed_out(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId, nudges: list[str]
) -> None:
    """A request is refused as if it had never come; activated, it needs no second download."""
    glance.images[cached].metadata["status"] = "deactivated"
    assert await revalidate.run() == {cached: Standing.DEACTIVATED}
    assert nudges == ["pass"]
    with pytest.raises(ImageNotActiveError):
        await disk_from(rig, cached, disk_key(1))
    glance.images[cached].metadata["status"] = "active"
    assert await disk_from(rig, cached, disk_key(1)) is CacheResult.HIT
    assert await disk_from(rig, cached, disk_key(2)) is CacheResult.HIT
    assert len(glance.calls("data")) == 1


async def test_image_that_was_activated_is_active_again(
    glance: LyingGlance, revalidate: Revalidate, cached: ImageId, nudges: list[str]
) -> None:
    """Nobody need ask for it before the next pass finds it so."""
    glance.images[cached].metadata["status"] = "deactivated"
    await revalidate.run()
    glance.images[cached].metadata["status"] = "active"
    assert await revalidate.run() == {cached: Standing.ACTIVE}
    assert nudges == ["pass"]


async def test_without_glance_only_active_images_are_served(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId
) -> None:
    """Nobody can tell whether a deactivated one may be handed out again."""
    other = await bring(rig, glance.add(DATA + DATA))
    glance.images[cached].metadata["status"] = "deactivated"
    await revalidate.run()
    glance.always("show", lying_glance.status(503))
    with pytest.raises(GlanceUnavailableError):
        await disk_from(rig, cached, disk_key(1))
    assert await disk_from(rig, other, disk_key(2)) is CacheResult.HIT


async def test_existing_disks_stay(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId
) -> None:
    """A disk that was made before is shown, and answered with, as before."""
    await disk_from(rig, cached, disk_key(1))
    del glance.images[cached]
    await revalidate.run()
    await disk_from(rig, cached, disk_key(1))
    assert (await rig.disks.show(disk_key(1))).base is not None


async def test_deleted_image_is_gone(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId, nudges: list[str]
) -> None:
    """What everybody could see and nobody finds any more has been deleted."""
    del glance.images[cached]
    assert await revalidate.run() == {cached: Standing.GONE}
    assert nudges == ["pass"]
    with pytest.raises(ImageNotFoundError):
        await disk_from(rig, cached, disk_key(1))


async def test_tenants_image_that_the_agent_cannot_see_is_left_alone(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate
) -> None:
    """To the agent's own user a private image never was there: that says nothing."""
    require_programs("qemu-img")
    private = await bring(rig, glance.add(DATA, visibility="private"))
    glance.always("show", lying_glance.status(404))
    assert await revalidate.run() == {}
    assert await disk_from(rig, private, disk_key(1)) is CacheResult.HIT


async def test_private_image_that_the_agent_saw_is_gone_when_it_does_not(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate
) -> None:
    """What was there in an earlier pass, and is not there now, has been deleted."""
    require_programs("qemu-img")
    private = await bring(rig, glance.add(DATA, visibility="private"))
    await revalidate.run()
    del glance.images[private]
    assert await revalidate.run() == {private: Standing.GONE}


async def test_other_content_under_the_id_is_fetched(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId
) -> None:
    """An id that was purged and used again gives the bytes of now."""
    del glance.images[cached]
    glance.add(new := os.urandom(1 << 20), id=cached)
    assert await revalidate.run() == {cached: Standing.CHANGED}
    ensured = await rig.bases.ensure(cached, NOBODY)
    assert ensured.result is CacheResult.MISS
    path = rig.layout.base(ensured.base.base_id, ensured.base.format)
    assert path.read_bytes() == new
    assert await standing_of(rig, cached) is Standing.ACTIVE


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_refusal_changes_nothing(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId, status: int
) -> None:
    """Only a clear word about an image counts against it."""
    glance.always("show", lying_glance.status(status))
    assert await revalidate.run() == {}
    assert await standing_of(rig, cached) is Standing.ACTIVE


async def test_refusal_of_one_image_does_not_end_the_pass(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId
) -> None:
    """The others are asked about all the same."""
    others = [await bring(rig, glance.add(os.urandom(1000))) for _ in range(5)]
    for image_id in (cached, *others):
        glance.images[image_id].metadata["status"] = "deactivated"
    glance.lie("show", lying_glance.status(400))
    assert len(await revalidate.run()) == len(others)


@pytest.mark.parametrize(
    "error", [DiskFullError(required_bytes=1, available_bytes=0), CatalogError("broken")]
)
async def test_news_that_cannot_be_written_down_comes_again(
    rig: Rig,
    glance: LyingGlance,
    revalidate: Revalidate,
    cached: ImageId,
    nudges: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A full disk ends neither the pass nor the daemon; the next pass finds the same."""
    other = await bring(rig, glance.add(os.urandom(1000)))
    for image_id in (cached, other):
        glance.images[image_id].metadata["status"] = "deactivated"
    write = rig.parts.catalog.set_standing

    async def fail(image_id: ImageId, standing: Standing) -> None:
        if image_id == cached:
            raise error
        await write(image_id, standing)

    with monkeypatch.context() as broken:
        broken.setattr(rig.parts.catalog, "set_standing", fail)
        assert await revalidate.run() == {other: Standing.DEACTIVATED}
    assert await revalidate.run() == {cached: Standing.DEACTIVATED}
    assert nudges == ["pass", "pass"]


async def test_glance_that_is_away_is_not_asked_on(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate
) -> None:
    """A cache of a thousand images does not ask a Glance that fails a thousand times."""
    require_programs("qemu-img")
    for _ in range(12):
        await bring(rig, glance.add(os.urandom(1000)))
    before = len(glance.calls("show"))
    glance.always("show", lying_glance.status(503))
    assert await revalidate.run() == {}
    assert len(glance.calls("show")) - before < 12


async def test_image_without_a_base_is_not_asked_about(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate
) -> None:
    """One that is coming is being asked about by whoever brings it."""
    require_programs("qemu-img")
    await rig.bases.announce(glance.add(DATA), NOBODY)
    before = len(glance.seen)
    await revalidate.run()
    assert len(glance.seen) == before


async def test_news_is_told(
    rig: Rig, glance: LyingGlance, revalidate: Revalidate, cached: ImageId
) -> None:
    """Whoever follows the events learns which image, and what of it."""
    glance.images[cached].metadata["status"] = "deactivated"
    follower = asyncio.ensure_future(anext(rig.parts.events.follow()))
    await asyncio.sleep(0)
    await revalidate.run()
    event = await follower
    assert (event.kind, event.facts["image_id"]) == (EventKind.IMAGE_STANDING, cached)
    assert event.facts["reason"] == "deactivated"
