"""Images as an operator handles them: what may go, and what stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    BaseInUseError,
    DigestMismatchError,
    GlanceUnavailableError,
    ImageNotFoundError,
)
from cacheagent.model import CacheResult, Caller, DiskSpec, ImageState
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import gathered, until

if TYPE_CHECKING:
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = b"data" * (MIB // 4)
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake


async def test_what_is_coming_is_not_evicted(rig: Rig, glance: LyingGlance) -> None:
    """Somebody waits for it."""
    gate, image_id = asyncio.Event(), glance.add(DATA)
    glance.lie("data", lying_glance.held(gate))
    view, _ = await rig.images.prefetch(image_id, NOBODY, pin=False, wait=False)
    assert view.state is not ImageState.READY
    await until(lambda: glance.calls("data"))
    with pytest.raises(BaseInUseError) as refused:
        await rig.images.evict(image_id, NOBODY)
    assert refused.value.users == ({"kind": "waiter"},)
    gate.set()
    await rig.bases.ensure(image_id, NOBODY)
    await rig.images.evict(image_id, NOBODY)
    with pytest.raises(ImageNotFoundError):
        await rig.images.show(image_id, NOBODY)


async def test_pin_holds_until_it_is_taken_away(rig: Rig, glance: LyingGlance) -> None:
    """A pinned image stays, and shows it."""
    image_id = glance.add(DATA)
    view, _ = await rig.images.prefetch(image_id, NOBODY, pin=True, wait=True)
    assert (view.state, view.pinned) == (ImageState.READY, True)
    with pytest.raises(BaseInUseError) as refused:
        await rig.images.evict(image_id, NOBODY)
    assert refused.value.users == ({"kind": "pin", "detail": image_id},)
    await rig.images.unpin(image_id, NOBODY)
    await rig.images.evict(image_id, NOBODY)
    assert list(rig.layout.bases.iterdir()) == list(rig.layout.trash.iterdir()) == []


async def test_an_image_that_failed_cannot_be_pinned(rig: Rig, glance: LyingGlance) -> None:
    """There is nothing to keep, and nobody is told that it is kept."""
    image_id = glance.add(DATA)
    glance.always("data", lying_glance.body(DATA[::-1]))
    with pytest.raises(DigestMismatchError):
        await rig.bases.ensure(image_id, NOBODY)
    with pytest.raises(ImageNotFoundError):
        await rig.images.pin(image_id, NOBODY)
    assert not (await rig.images.show(image_id, NOBODY)).pinned


async def test_prefetch_tells_what_it_found(rig: Rig, glance: LyingGlance) -> None:
    """Who brings an image, who joins that, and who finds it here are told apart."""
    gate, image_id = asyncio.Event(), glance.add(DATA)
    glance.lie("data", lying_glance.held(gate))

    async def found(*, wait: bool) -> CacheResult:
        return (await rig.images.prefetch(image_id, NOBODY, pin=False, wait=wait))[1]

    assert await found(wait=False) is CacheResult.MISS
    await until(lambda: glance.calls("data"))
    assert await found(wait=False) is CacheResult.JOINED
    joining = asyncio.ensure_future(found(wait=True))
    await until(lambda: rig.bases.waiters(image_id) == 2)
    gate.set()
    assert await joining is CacheResult.JOINED
    assert await found(wait=True) is await found(wait=False) is CacheResult.HIT
    assert len(glance.calls("data")) == 1


async def test_eviction_takes_everything_of_the_base(rig: Rig, glance: LyingGlance) -> None:
    """Manifest and templates go with it, and so does every image that it stood for."""
    first, second = glance.add(DATA), glance.add(DATA)
    for number, image_id in enumerate((first, second)):
        await rig.disks.create(disk_key(number), DiskSpec(image_id=image_id, size=None), NOBODY)
        await rig.disks.delete(disk_key(number))
    assert list(rig.layout.templates.iterdir())
    told = rig.parts.events.follow()
    waiting = [asyncio.ensure_future(anext(told))]
    await asyncio.sleep(0)
    await rig.images.evict(first, NOBODY)
    heard = {(await waiting.pop()).facts["image_id"], (await anext(told)).facts["image_id"]}
    assert heard == {first, second}
    for folder in (rig.layout.bases, rig.layout.templates, rig.layout.trash):
        assert list(folder.iterdir()) == []
    assert await gathered(rig.images.list_images(NOBODY)) == []
    assert rig.metric("evictions_total", reason="operator") == 1


async def test_intent_that_came_to_nothing_can_be_evicted(rig: Rig, glance: LyingGlance) -> None:
    """An image that Glance cannot send is shown as failed, and goes with its bytes."""
    image_id = glance.add(DATA)
    glance.always("data", lying_glance.status(503))
    with pytest.raises(GlanceUnavailableError):
        await rig.bases.ensure(image_id, NOBODY)
    (view,) = await gathered(rig.images.list_images(NOBODY))
    assert view.state is ImageState.FAILED
    assert "503" in str(view.error)
    await rig.images.evict(image_id, NOBODY)
    assert await gathered(rig.images.list_images(NOBODY)) == []
    assert rig.left_in_ingest() == []


async def test_images_of_others_are_not_shown(rig: Rig, glance: LyingGlance) -> None:
    """A tenant sees of the cache what it may download, and can remove nothing else."""
    own, other = glance.add(DATA), glance.add(b"other" * MIB)
    for image_id in (own, other):
        await rig.bases.ensure(image_id, NOBODY)
    del glance.images[other]
    assert [view.image.image_id for view in await gathered(rig.images.list_images(TENANT))] == [own]
    for ask in (rig.images.show, rig.images.evict, rig.images.pin, rig.images.unpin):
        with pytest.raises(ImageNotFoundError):
            await ask(other, TENANT)
    assert len(await gathered(rig.images.list_images(NOBODY))) == 2


async def test_prefetch_outlives_those_who_wait(rig: Rig, glance: LyingGlance) -> None:
    """An image that was asked for comes, though the one that waited for it has gone."""
    gate, image_id = asyncio.Event(), glance.add(DATA)
    glance.lie("data", lying_glance.held(gate))
    leaving = asyncio.ensure_future(rig.bases.ensure(image_id, NOBODY))
    await until(lambda: glance.calls("data"))
    for _ in range(3):
        await rig.images.prefetch(image_id, NOBODY, pin=False, wait=False)
    await until(lambda: rig.bases.waiters(image_id) == 2)
    leaving.cancel()
    await asyncio.wait({leaving})
    gate.set()
    await until(lambda: image_id not in rig.bases.coming())
    assert (await rig.images.show(image_id, NOBODY)).state is ImageState.READY
    assert len(glance.calls("data")) == 1
