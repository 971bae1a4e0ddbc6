"""The stream of events over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientPayloadError
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from cacheagent.api import events as api_events
from cacheagent.api.app import create_app
from cacheagent.errors import UnauthenticatedError
from cacheagent.model import Caller
from cacheagent.service.events import Event, EventKind
from tests.fakes.services import IMAGE, NOON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientResponse, web

    from cacheagent.metrics import Metrics
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

    Client = TestClient[web.Request, web.Application]

PATH = "/v1/events"
SECONDS = 30


@pytest.fixture
async def client(services: FakeServices, metrics: Metrics) -> AsyncIterator[Client]:
    """Serve the API as the daemon does: who goes away cancels what it asked for."""
    server = TestServer(create_app(services.bundle, metrics))
    await server.start_server(shutdown_timeout=SECONDS)
    async with TestClient(server) as client:
        yield client


@asynccontextmanager
async def following(client: Client, **headers: str) -> AsyncIterator[ClientResponse]:
    """Begin to follow, and go on until leaving."""
    async with asyncio.timeout(SECONDS), client.get(PATH, headers=headers) as stream:
        assert stream.status == 200
        assert await block(stream) == ["retry: 1000"]
        yield stream


async def block(stream: ClientResponse) -> list[str]:
    """Give the lines up to the next empty one."""
    lines = []
    while line := (await stream.content.readline()).decode().rstrip("\n"):
        lines.append(line)
    return lines


async def test_what_happens_is_told(client: Client, services: FakeServices) -> None:
    """Each event has its id, its name, and its facts as one line of JSON."""
    async with following(client, **{"X-Request-ID": "a"}) as stream:
        assert stream.content_type == "text/event-stream"
        assert stream.headers["X-Request-ID"] == "a"
        services.following.events.emit(
            EventKind.IMAGE_FAILED, image_id=IMAGE, error="two\nlines \ud800"
        )
        number, name, data = await block(stream)
    assert number.startswith("id: ")
    assert number.endswith("-1")
    assert name == "event: image.failed"
    assert json.loads(data.removeprefix("data: ")) == {
        "at": "2026-03-01T12:00:00Z",
        "image_id": IMAGE,
        "error": "two\nlines ?",
    }
    assert services.script.calls == [("follow", None, Caller(request_id="a"))]


async def test_who_comes_back_gets_what_it_missed(client: Client, services: FakeServices) -> None:
    """``Last-Event-ID`` names the last event that came; the others follow."""
    async with following(client) as stream:
        services.following.events.emit(EventKind.PRUNE, number=1)
        last = (await block(stream))[0].removeprefix("id: ")
    services.following.events.emit(EventKind.PRUNE, number=2)
    async with following(client, **{"Last-Event-ID": last}) as stream:
        assert '"number": 2' in (await block(stream))[2]


async def test_what_is_no_longer_remembered_is_told_as_missed(client: Client) -> None:
    """A reader of an earlier run of the daemon learns that it has to look anew."""
    async with following(client, **{"Last-Event-ID": "00000000-7"}) as stream:
        assert (await block(stream))[1] == "event: missed"


@pytest.mark.parametrize("last", ["", "7", "x-7", "0-" + "9" * 5000, "0-7\t8"])
async def test_what_is_no_id_of_an_event_is_refused(ask: Ask, last: str) -> None:
    """A mistake in a program is told as such."""
    assert (await ask("GET", PATH, headers={"Last-Event-ID": last})).status == 400


async def test_silence_is_broken(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment comes again and again, so that a line that is dead can be told from a quiet one."""
    monkeypatch.setattr(api_events, "HEARTBEAT", 0.001)
    async with following(client) as stream:
        assert [await block(stream), await block(stream)] == [[":"], [":"]]


async def test_the_end_of_the_events_ends_the_stream(
    client: Client, services: FakeServices
) -> None:
    """A daemon that stops lets its readers go, after what it had to say."""
    async with following(client) as stream:
        services.following.events.emit(EventKind.PRUNE)
        services.following.events.close()
        assert len(await block(stream)) == 3
        assert await stream.read() == b""


async def test_who_goes_away_leaves_nothing(
    client: Client, services: FakeServices, metrics: Metrics
) -> None:
    """The following ends; it counts as a success, and its time as no time to answer."""
    with capture_logs() as logs:
        async with following(client):
            pass
        await asyncio.wait_for(services.following.left.wait(), SECONDS)
        while not logs:  # noqa: ASYNC110 -- the line is written after the last thing to wait for
            await asyncio.sleep(0)
    assert [(line["status"], line["result"]) for line in logs] == [(200, "hit")]
    labels = {"operation": "events", "result": "hit"}
    value = metrics.registry.get_sample_value
    assert value("cacheagent_requests_total", labels) == 1
    assert value("cacheagent_request_duration_seconds_count", labels) == 0


async def test_who_does_not_read_does_not_hold_up_the_end(
    client: Client, services: FakeServices
) -> None:
    """The server closes at once though a reader has let megabytes pile up on its side."""
    async with asyncio.timeout(SECONDS - 1), following(client):
        for _ in range(900):  # more than the sockets between the two can hold
            services.following.events.emit(EventKind.PRUNE, text="x" * 30_000)
        services.following.events.close()
        await client.server.close()
        await services.following.left.wait()


@pytest.mark.parametrize(
    ("error", "word"),
    [(UnauthenticatedError("it has expired"), "unauthenticated"), (ZeroDivisionError(), None)],
)
async def test_what_ends_a_stream_is_told(
    client: Client,
    services: FakeServices,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    word: str | None,
) -> None:
    """A problem comes as the last event; what nobody expected is a cut, and in the log."""

    def follow(*_: object) -> object:
        return ending()

    async def ending() -> AsyncIterator[object]:
        yield Event(event_id="0-1", kind=EventKind.PRUNE, at=NOON, facts={})
        raise error

    monkeypatch.setattr(services.following, "follow", follow)
    with capture_logs() as logs:
        async with following(client) as stream:
            assert (await block(stream))[1] == "event: prune"
            if word is None:
                with pytest.raises(ClientPayloadError):
                    await stream.read()
            else:
                name, data = await block(stream)
                problem = json.loads(data.removeprefix("data: "))
                assert (name, problem["type"]) == ("event: problem", f"urn:cacheagent:{word}")
                assert await stream.read() == b""
    assert logs[0].get("word") == word


async def test_head_tells_the_headers_alone(ask: Ask) -> None:
    """Who only asks what is there is not kept."""
    answer = await ask("HEAD", PATH)
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
