"""What those who follow the events are told of an image that is coming."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import ProblemError
from cacheagent.model import Caller, IngestPhase
from cacheagent.service import telling
from cacheagent.service.events import EventKind, Events
from cacheagent.service.meter import Meter
from tests.fakes import lying_glance
from tests.fakes.values import NOW, image_id
from tests.needs import require_programs
from tests.service.rig import until

if TYPE_CHECKING:
    from cacheagent.service.events import Event
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

NOBODY = Caller()
DATA = b"data" * 1000


async def happened(events: Events) -> list[Event]:
    """Give all that has happened, and will."""
    events.close()
    run = "00000000-0"  # no run of a daemon has this id: all that is remembered comes
    return [event async for event in events.follow(run) if event.kind is not EventKind.MISSED]


async def test_progress_is_told_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is told once, and after the end nothing more."""
    monkeypatch.setattr(telling, "SECONDS", 0)
    events, meter = Events(lambda: NOW), Meter(lambda: 0.0)
    seen: list[Event] = []

    async def follow() -> None:
        async with aclosing(events.follow()) as told:
            async for event in told:
                seen.append(event)  # noqa: PERF401 -- it is looked at while it grows

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    async with telling.told(events, image_id(1), meter):
        await until(lambda: len(seen) == 1)
        meter.enter(IngestPhase.DOWNLOADING, 100)
        meter.reach(40)
        await until(lambda: len(seen) == 2)
    meter.reach(100)
    events.close()
    await following
    assert [event.facts["phase"] for event in seen] == ["queued", "downloading"]
    assert seen[1].facts == {
        "image_id": image_id(1),
        "phase": "downloading",
        "bytes_done": 40,
        "bytes_total": 100,
        "bytes_per_second": 0,
    }


async def test_an_image_that_has_come_is_told(rig: Rig, glance: LyingGlance) -> None:
    """First that it is on its way, at last the base that it stands for."""
    require_programs("qemu-img")
    wanted = glance.add(DATA)
    ensured = await rig.bases.ensure(wanted, NOBODY)
    events = await happened(rig.parts.events)
    assert [event.kind for event in events][:: len(events) - 1] == [
        EventKind.IMAGE_PROGRESS,
        EventKind.IMAGE_PUBLISHED,
    ]
    facts = events[-1].facts
    assert (facts["image_id"], facts["base_id"]) == (wanted, ensured.base.base_id)


async def test_an_image_that_does_not_come_is_told(rig: Rig, glance: LyingGlance) -> None:
    """The reason is the word of the problem, the error its sentence."""
    wanted = glance.add(DATA)
    glance.lie("data", lying_glance.status(500))
    with pytest.raises(ProblemError) as refused:
        await rig.bases.ensure(wanted, NOBODY)
    event = (await happened(rig.parts.events))[-1]
    assert event.kind is EventKind.IMAGE_FAILED
    assert event.facts == {
        "image_id": wanted,
        "reason": "glance-unavailable",
        "error": str(refused.value),
    }
