"""What happens in the agent, for those who watch it and for those who come back."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.service.events import KEPT, Event, EventKind, Events
from tests.fakes.values import NOW


def _events(*paths: str) -> Events:
    """Give the events of one run: disks that were made at these paths."""
    events = Events(lambda: NOW)
    for path in paths:
        events.emit(EventKind.DISK_CREATED, path=path)
    return events


async def _all(events: Events, after: str | None) -> list[Event]:
    """Give what a reader gets that stays until the end."""
    return [event async for event in events.follow(after)]


async def _until_the_end(events: Events, after: str | None) -> list[Event]:
    """Give what a reader gets for whom nothing more happens."""
    events.close()
    return await _all(events, after)


def _paths(told: list[Event]) -> list[object]:
    return [event.facts.get("path", event.kind) for event in told]


async def test_who_watches_is_told_what_happens_from_then_on() -> None:
    """An event has its kind, its time and its facts; what was before is not told unasked."""
    events = _events("/before")
    watching = asyncio.create_task(_all(events, None))
    await asyncio.sleep(0)
    events.emit(EventKind.BASE_EVICTED, base_id="sha512-1", bytes=7)
    events.close()
    (event,) = await watching
    assert (event.kind, event.at) == (EventKind.BASE_EVICTED, NOW)
    assert event.facts == {"base_id": "sha512-1", "bytes": 7}


async def test_who_comes_back_misses_nothing() -> None:
    """The id of the last event that was seen is where the next stream begins."""
    events = _events("/a", "/b", "/c")
    events.close()
    first, *_ = await _all(events, "")
    seen = await _all(events, first.event_id)
    assert _paths(seen) == ["/a", "/b", "/c"]
    assert _paths(await _all(events, seen[1].event_id)) == ["/c"]
    assert await _all(events, seen[2].event_id) == []


async def test_ids_tell_the_order_within_a_run() -> None:
    """Each id is its predecessor's, one higher; no two runs share any."""
    runs = [await _until_the_end(_events("/a", "/b"), "") for _ in range(2)]
    first, second = ({event.event_id for event in run} for run in runs)
    assert first.isdisjoint(second)
    assert sorted(int(event_id.rpartition("-")[2]) for event_id in first) == [0, 1, 2]


@pytest.mark.parametrize("after", ["", "words", "0-1", "ffffffff-1", "-", "-1"])
async def test_who_comes_from_an_earlier_run_is_told_so(after: str) -> None:
    """Where nobody can say what was missed, that is told first, then all that is kept."""
    told = await _until_the_end(_events("/a", "/b"), after)
    assert _paths(told) == [EventKind.MISSED, "/a", "/b"]
    assert told[0].facts == {}


async def test_an_event_of_this_run_that_was_never_told_is_unknown() -> None:
    """An id from the future is no place to go on from."""
    events = _events("/a")
    events.close()
    last = (await _all(events, ""))[-1].event_id
    told = await _all(events, last.replace("-1", "-9"))
    assert _paths(told) == [EventKind.MISSED, "/a"]


async def test_who_was_away_for_too_long_is_told_that_some_are_missing() -> None:
    """Where the first of what was missed is dropped, ``missed`` stands for it, with a place."""
    events = _events("/first")
    first = (await _first(events)).event_id
    for number in range(KEPT + 5):
        events.emit(EventKind.DISK_GONE, path=f"/{number}")
    events.close()
    told = await _all(events, first)
    assert len(told) == KEPT + 1
    assert _paths(told)[:2] == [EventKind.MISSED, "/5"]
    assert _paths(await _all(events, told[0].event_id))[0] == "/5"


async def test_a_reader_that_falls_behind_is_told_that_some_are_missing() -> None:
    """A stream that is read too slowly says so in the middle, and goes on."""
    events = _events("/first")
    stream = events.follow("")
    assert _paths([await anext(stream), await anext(stream)]) == [EventKind.MISSED, "/first"]
    for number in range(KEPT + 1):
        events.emit(EventKind.DISK_GONE, path=f"/{number}")
    assert _paths([await anext(stream), await anext(stream)]) == [EventKind.MISSED, "/1"]
    await stream.aclose()


async def _first(events: Events) -> Event:
    """Give the first event that is kept."""
    stream = events.follow("")
    await anext(stream)
    try:
        return await anext(stream)
    finally:
        await stream.aclose()
