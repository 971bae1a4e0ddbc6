"""What an operator asks of a cache with real files in it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import GlanceUnavailableError, ImageNotFoundError, OperatorOnlyError
from cacheagent.model import Caller, DiskSpec, ImageState, UserKind
from cacheagent.policy.eviction import Reason, Rule
from cacheagent.service.operator import Operator
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import gathered

if TYPE_CHECKING:
    from aiohttp import web

    from cacheagent.model import ImageId
    from cacheagent.service.operator import Pruned
    from tests.fakes.lying_glance import Exchange, Lie, LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake


@pytest.fixture
def operator(rig: Rig) -> Operator:
    """Give the operator's services over those of the rig."""
    return Operator(rig.parts, images=rig.images, evictions=rig.evictions, access=rig.access)


async def cached(rig: Rig, glance: LyingGlance, count: int) -> list[ImageId]:
    """Bring in so many images of a MiB, a minute apart, and let them grow an hour old."""
    found = []
    for number in range(count):
        found.append(glance.add(bytes([number + 1]) * MIB))
        await rig.bases.ensure(found[-1], NOBODY)
        rig.clock.now += 60
    rig.clock.now += 3600
    return found


def hidden(image_id: ImageId) -> Lie:
    """Answer as if the caller had no right to this one image."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        code = 404 if f"/{image_id}/" in exchange.request.path else 200
        return await lying_glance.status(code)(exchange)

    return lie


def images(pruned: Pruned) -> tuple[list[ImageId], list[ImageId]]:
    """Give the images that go, and those that stay."""
    return (
        [each for eviction in pruned.evicted for each in eviction.images],
        [each for stay in pruned.stay for each in stay.images],
    )


async def test_an_image_that_nobody_needs_room_of_stays(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """It has a place in the order, and a time at which it goes for being idle."""
    _, second = await cached(rig, glance, 2)
    why = await operator.why(second, NOBODY)
    assert why.verdict is not None
    assert (why.verdict.goes, why.verdict.rules) == (False, (Rule.NOT_NEEDED,))
    assert (why.verdict.position, why.verdict.unused) == (2, 2)
    assert why.view.base is not None
    assert why.verdict.idle_at == why.view.base.last_used_at + timedelta(days=7)
    assert why.snapshot.cache_bytes >= 2 * MIB
    assert "as number 2 of 2" in why.summary


async def test_an_image_that_was_unused_for_long_goes(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """The same plan that the next pass carries out says so before."""
    (only,) = await cached(rig, glance, 1)
    rig.clock.now += timedelta(days=8).total_seconds()
    why = await operator.why(only, NOBODY)
    assert why.verdict is not None
    assert (why.verdict.goes, why.verdict.reason) == (True, Reason.MAX_IDLE)
    assert images(await operator.prune(NOBODY, dry_run=False, free_bytes=None)) == ([only], [])
    with pytest.raises(ImageNotFoundError):
        await operator.why(only, NOBODY)


async def test_an_image_in_use_is_told_with_its_users(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """A disk and a pin are two reasons."""
    (only,) = await cached(rig, glance, 1)
    await rig.disks.create(disk_key(1), DiskSpec(image_id=only, size=None), NOBODY)
    await rig.images.pin(only, NOBODY)
    why = await operator.why(only, NOBODY)
    assert why.verdict is not None
    assert {user.kind for user in why.verdict.users} == {UserKind.DISK, UserKind.PIN}
    assert why.verdict.position is None


async def test_an_image_that_failed_has_no_verdict(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """There is nothing to evict, and the reason is told."""
    wanted = glance.add(b"data")
    glance.lie("data", lying_glance.status(500))
    with pytest.raises(GlanceUnavailableError):
        await rig.bases.ensure(wanted, NOBODY)
    why = await operator.why(wanted, NOBODY)
    assert (why.verdict, why.view.state) == (None, ImageState.FAILED)
    assert why.summary.startswith("There is no base to evict: the image is failed: ")


async def test_a_dry_run_changes_nothing_and_tells_the_truth(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """What it says goes is what goes, in the same order."""
    first, second, third = await cached(rig, glance, 3)
    planned = await operator.prune(NOBODY, dry_run=True, free_bytes=2 * MIB)
    assert images(planned) == ([first, second], [third])
    assert (planned.dry_run, planned.needed_bytes, planned.unmet_bytes) == (True, 2 * MIB, 0)
    assert len(await gathered(rig.images.list_images(NOBODY))) == 3
    done = await operator.prune(NOBODY, dry_run=False, free_bytes=2 * MIB)
    assert images(done) == images(planned)
    assert (done.dry_run, done.skipped) == (False, ())
    left = await gathered(rig.images.list_images(NOBODY))
    assert [view.image.image_id for view in left] == [third]
    assert rig.metric("prune_runs_total", trigger="operator", result="done") == 1


async def test_more_than_there_is_frees_all_that_may_go(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """What is pinned stays, and what could not be freed is told."""
    first, second = await cached(rig, glance, 2)
    await rig.images.pin(first, NOBODY)
    done = await operator.prune(NOBODY, dry_run=False, free_bytes=100 * MIB)
    assert images(done) == ([second], [first])
    assert done.unmet_bytes > 90 * MIB


async def test_without_a_wish_the_bounds_alone_count(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """Nothing goes where nothing is short."""
    (only,) = await cached(rig, glance, 1)
    assert images(await operator.prune(NOBODY, dry_run=False, free_bytes=None)) == ([], [only])


async def test_a_tenant_sees_only_its_own(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """The sums are those of the whole pass, the bases those of images that it may have."""
    first, second, third = await cached(rig, glance, 3)
    glance.always("access", hidden(second))
    planned = await operator.prune(TENANT, dry_run=True, free_bytes=2 * MIB)
    assert images(planned) == ([first], [third])
    assert planned.freed_bytes >= 2 * MIB


async def test_a_tenant_evicts_nothing_of_others(
    rig: Rig, glance: LyingGlance, operator: Operator
) -> None:
    """A pass is about everybody's images: with a token it is refused, whatever that may have."""
    await cached(rig, glance, 1)
    with pytest.raises(OperatorOnlyError):
        await operator.prune(TENANT, dry_run=False, free_bytes=MIB)
    assert len(await gathered(rig.images.list_images(NOBODY))) == 1
