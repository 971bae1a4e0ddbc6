"""Events, passes on request and reasons, of a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from cacheagent.api.server import STOP_SECONDS
from cacheagent.client import AsyncClient
from cacheagent.errors import DaemonUnreachableError, RequestFailedError
from tests.e2e.agent import Agent, agent_on, without_keystone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.client.shapes import EventShape
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
SECONDS = 60


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon that fetches from it."""
    async with agent_on(without_keystone(glance.url)) as running:
        yield running


class Reader:
    """Follows the events of a daemon, until it does not answer any more."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._seen: asyncio.Queue[EventShape] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def _follow(self, after: str | None) -> None:
        async with AsyncClient(str(self._agent.api_socket)) as client:
            async for event in client.events(after):
                self._seen.put_nowait(event)

    @contextlib.asynccontextmanager
    async def following(self, after: str | None = None) -> AsyncIterator[None]:
        """Follow for as long as the context lasts."""
        self.task = asyncio.create_task(self._follow(after))
        try:
            yield
        finally:
            self.task.cancel()
            await asyncio.wait({self.task})

    async def until(self, name: str, **facts: str) -> list[EventShape]:
        """Wait for an event of this name with these facts, and give all up to it."""
        events: list[EventShape] = []
        async with asyncio.timeout(SECONDS):
            while True:
                events.append(await self._seen.get())
                found = events[-1]
                if found["event"] == name and facts.items() <= found["data"].items():
                    return events

    async def begun(self) -> str:
        """Let things happen until one of them is told, and so all that follow will be."""
        async with asyncio.timeout(SECONDS):
            while self._seen.empty():
                assert self.task is not None
                assert not self.task.done()
                await self._agent.create(None, size_bytes=MIB)
        return (await self._seen.get())["id"]


async def test_a_life_of_an_image_is_told(agent: Agent, glance: LyingGlance) -> None:
    """It comes, a disk is made and goes, and an operator lets the base go."""
    reader = Reader(agent)
    async with reader.following():
        await reader.begun()
        image_id, key = glance.add(b"x" * MIB), str(uuid.uuid4())
        assert (await agent.create(image_id, f"{key}/root")).status == 201
        told = await reader.until("disk.created", image_id=image_id)
        mine = [event["event"] for event in told if event["data"].get("image_id") == image_id]
        assert mine[0] == "image.progress"
        assert mine[-2:] == ["image.published", "disk.created"]
        why = (await agent.ask("GET", f"/v1/images/{image_id}/why")).body
        assert (why["verdict"], [user["kind"] for user in why["users"]]) == ("stays", ["disk"])
        await agent.ask("DELETE", f"/v1/instances/{key}")
        await reader.until("disk.gone", instance_id=key)
        await agent.ask("DELETE", f"/v1/images/{image_id}")
        await reader.until("base.evicted", base_id=why["base_id"], reason="operator")


async def test_a_reader_that_was_away_misses_nothing(agent: Agent, glance: LyingGlance) -> None:
    """The id of the last event leads to those behind it, and one of an earlier run to all."""
    reader = Reader(agent)
    async with reader.following():
        last = await reader.begun()
    key = str(uuid.uuid4())
    await agent.create(glance.add(b"y" * MIB), f"{key}/root")
    async with reader.following(last):
        created = (await reader.until("disk.created", instance_id=key))[-1]
    assert await agent.stop() == 0
    await agent.start()
    later = Reader(agent)
    async with later.following(created["id"]):
        assert len(await later.until("missed")) == 1


async def test_a_daemon_that_stops_waits_for_no_reader(agent: Agent) -> None:
    """Neither for one that reads nor for one that does not, and the first is told the end."""
    reader = Reader(agent)
    connector = aiohttp.UnixConnector(str(agent.api_socket))
    async with reader.following():
        await reader.begun()
        async with (
            aiohttp.ClientSession("http://agent", connector=connector) as session,
            session.get("/v1/events") as silent,
        ):
            assert silent.status == 200
            # A request that is under way would be given half a minute.
            async with asyncio.timeout(STOP_SECONDS / 2):
                assert await agent.stop() == 0
        assert reader.task is not None
        with pytest.raises((DaemonUnreachableError, RequestFailedError)):
            await reader.task


async def test_a_pass_does_what_its_dry_run_said(agent: Agent, glance: LyingGlance) -> None:
    """In the same order, and `why` had it as well; what is pinned stays."""
    images = [glance.add(bytes([number]) * MIB) for number in range(1, 4)]
    for image_id in images:
        await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    await agent.ask("PUT", f"/v1/images/{images[0]}/pin")
    wanted: dict[str, Any] = {"free_bytes": MIB}
    young = (await agent.ask("POST", "/v1/prune", wanted)).body
    assert young["evicted"] == []
    assert {rule for stay in young["stay"] for rule in stay["rules"]} == {"min_age"}
    assert young["unmet_bytes"] == MIB
    agent.settings = {**agent.settings, "eviction": {"min_age": 0}}
    assert await agent.stop() == 0
    await agent.start()
    planned = (await agent.ask("POST", "/v1/prune", {**wanted, "dry_run": True})).body
    assert [each["image_ids"] for each in planned["evicted"]] == [[images[1]]]
    done = (await agent.ask("POST", "/v1/prune", wanted)).body
    assert done["evicted"] == planned["evicted"]
    assert [each["image_ids"] for each in done["stay"]] == [[images[0]], [images[2]]]
    left = (await agent.ask("GET", "/v1/images")).body["images"]
    assert {image["image_id"] for image in left} == {images[0], images[2]}


async def test_a_base_is_verified_on_request(agent: Agent, glance: LyingGlance) -> None:
    """One that has rotted is found, and not handed out again."""
    image_id = glance.add(b"z" * MIB)
    await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    sound = await agent.ask("POST", f"/v1/images/{image_id}/verify")
    assert (sound.status, sound.body["outcome"]) == (200, "verified")
    (base,) = (agent.state / "bases").glob("*.raw")
    base.chmod(0o640)
    with base.open("r+b") as file:
        file.write(b"rot")
    rotten = await agent.ask("POST", f"/v1/images/{image_id}/verify")
    assert (rotten.status, rotten.body["outcome"]) == (200, "damaged")
    await agent.create(image_id)
    assert (await agent.ask("POST", f"/v1/images/{image_id}/verify")).body["outcome"] == "verified"
