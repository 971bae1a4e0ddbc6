"""May this caller have this image: what is believed, and for how long."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    GlanceUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    UnauthenticatedError,
)
from cacheagent.model import Caller
from cacheagent.service import access
from tests.fakes import lying_glance
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.errors import ProblemError
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
STRANGER = Caller(token="stranger")  # noqa: S106 -- nor this
TTL = 60


async def test_yes_is_believed_for_its_time(rig: Rig, glance: LyingGlance) -> None:
    """A tenant that makes many disks costs Glance one question a minute, not one each."""
    image_id = glance.add(b"data")
    for _ in range(3):
        await rig.access.check(image_id, TENANT)
    assert len(glance.calls("access")) == 1
    rig.clock.now += TTL - 1
    await rig.access.check(image_id, TENANT)
    assert len(glance.calls("access")) == 1
    rig.clock.now += 1
    await rig.access.check(image_id, TENANT)
    assert len(glance.calls("access")) == 2
    assert rig.metric("access_checks_total", result="allowed") == 2
    assert rig.metric("access_checks_total", result="remembered") == 3


async def test_no_is_never_believed(rig: Rig, glance: LyingGlance) -> None:
    """Who was refused and got the right meanwhile need not wait for it to come true."""
    image_id = glance.add(b"data")
    glance.forbids.add("tenant")
    for _ in range(2):
        with pytest.raises(ImageForbiddenError):
            await rig.access.check(image_id, TENANT)
    assert len(glance.calls("access")) == 2
    assert rig.metric("access_checks_total", result="denied") == 2
    glance.forbids.clear()
    await rig.access.check(image_id, TENANT)


async def test_right_that_was_taken_away_ends_with_the_time(rig: Rig, glance: LyingGlance) -> None:
    """A yes that has run out counts for nothing once Glance says no."""
    image_id = glance.add(b"data")
    await rig.access.check(image_id, TENANT)
    glance.forbids.add("tenant")
    await rig.access.check(image_id, TENANT)
    rig.clock.now += TTL
    with pytest.raises(ImageForbiddenError):
        await rig.access.check(image_id, TENANT)
    rig.clock.now -= 1
    with pytest.raises(ImageForbiddenError):
        await rig.access.check(image_id, TENANT)


async def test_yes_holds_for_one_token_and_one_image(rig: Rig, glance: LyingGlance) -> None:
    """What one tenant may says nothing of another one, nor of another image."""
    first, second = glance.add(b"first"), glance.add(b"second", visibility="private")
    await rig.access.check(first, TENANT)
    glance.forbids.update({"tenant", "stranger"})
    for image_id, caller in ((first, STRANGER), (second, TENANT)):
        with pytest.raises(ImageForbiddenError):
            await rig.access.check(image_id, caller)
    await rig.access.check(first, TENANT)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, UnauthenticatedError), (403, ImageForbiddenError), (404, ImageNotFoundError)],
)
async def test_what_glance_says_is_told(
    rig: Rig, glance: LyingGlance, status: int, error: type[ProblemError]
) -> None:
    """A caller learns whether it is its token, its rights, or the image."""
    image_id = glance.add(b"data")
    glance.always("show", lying_glance.status(status))
    with pytest.raises(error):
        await rig.access.check(image_id, TENANT)


async def test_deactivated_image_is_nobodys(rig: Rig, glance: LyingGlance) -> None:
    """An administrator may download what is deactivated, and gets no disk of it."""
    image_id = glance.add(b"data", status="deactivated")
    with pytest.raises(ImageNotActiveError):
        await rig.access.check(image_id, TENANT)


async def test_without_a_token_nothing_is_asked(rig: Rig, glance: LyingGlance) -> None:
    """A scheduler that speaks for nobody is trusted, and served while Glance is away."""
    await rig.access.check(glance.add(b"data"), Caller())
    assert glance.seen == []


async def test_doubt_is_no_yes(rig: Rig, glance: LyingGlance) -> None:
    """While Glance is away a tenant is served as long as the last yes holds, and no longer."""
    image_id = glance.add(b"data")
    await rig.access.check(image_id, TENANT)
    glance.always("show", lying_glance.status(503))
    await rig.access.check(image_id, TENANT)
    rig.clock.now += TTL
    with pytest.raises(GlanceUnavailableError):
        await rig.access.check(image_id, TENANT)
    assert rig.metric("access_checks_total", result="error") == 1


async def test_crowd_one_after_the_other_leaves_a_broken_server_in_peace(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """What Glance could not tell a token is not asked again for some seconds, and then it is."""
    image_id, other = glance.add(b"data"), glance.add(b"more")
    glance.always("access", lying_glance.status(503))
    async with in_a_task(rig_on(tmp_path, glance.url, glance={"failure_ttl": 5})) as rig:
        for _ in range(3):
            with pytest.raises(GlanceUnavailableError):
                await rig.access.check(image_id, TENANT)
        assert len(glance.calls("access")) == 1
        glance.truth("access")
        await rig.access.check(other, TENANT)
        rig.clock.now += 5
        await rig.access.check(image_id, TENANT)


async def test_crowd_of_one_token_asks_once(rig: Rig, glance: LyingGlance) -> None:
    """A hundred disks at once for one tenant cost one question."""
    image_id = glance.add(b"data")
    await asyncio.gather(*(rig.access.check(image_id, TENANT) for _ in range(100)))
    assert len(glance.calls("access")) == 1


async def test_no_time_means_no_belief(tmp_path: Path, glance: LyingGlance) -> None:
    """An operator who sets the time to 0 has Glance asked for every request."""
    image_id = glance.add(b"data")
    async with in_a_task(rig_on(tmp_path, glance.url, glance={"access_ttl": 0})) as rig:
        for _ in range(3):
            await rig.access.check(image_id, TENANT)
    assert len(glance.calls("access")) == 3


async def test_oldest_answer_goes_first(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens there are, what is remembered of them is bounded."""
    monkeypatch.setattr(access, "MEMORY", 2)
    image_id = glance.add(b"data")
    for name in ("first", "second", "third", "second", "third", "first"):
        await rig.access.check(image_id, Caller(token=name))
    asked = [seen.headers["X-Auth-Token"] for seen in glance.calls("access")]
    assert asked == ["first", "second", "third", "first"]


class Token(str):
    """A token whose end can be seen."""

    __slots__ = ("__weakref__",)


async def test_tokens_are_not_kept(rig: Rig, glance: LyingGlance) -> None:
    """What is remembered of a token is a digest: nobody finds it in the memory of the daemon."""
    image_id = glance.add(b"data")
    token = Token("tenant")
    gone = weakref.ref(token)
    await rig.access.check(image_id, Caller(token=token))
    await rig.access.check(image_id, Caller(token=token))
    assert len(glance.calls("access")) == 1
    glance.seen.clear()
    del token
    gc.collect()
    assert gone() is None
