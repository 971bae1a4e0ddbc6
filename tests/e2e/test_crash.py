"""A daemon that is killed, or told to stop, in the middle of its work."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.fakes import lying_glance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
DATA = os.urandom(96 * MIB)
ARRIVED = 92 * MIB
"""Whole blocks of a download that goes silent behind them."""

RECORDED = range(64 * MIB, ARRIVED + 1)
"""What the agent may have written down by then. The 64th MiB is on the disk before the last of
these pieces comes, since no more than four blocks of 4 MiB are on their way there."""


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on that image service."""
    async with agent_on(without_keystone(glance.url)) as running:
        yield running


async def download_halfway(agent: Agent, glance: LyingGlance) -> str:
    """Bring a daemon into the middle of a download that has gone silent; give the image."""
    image_id = glance.add(DATA, disk_format="raw")
    glance.lie("data", lying_glance.silence(after=ARRIVED + MIB))
    await agent.ask("PUT", f"/v1/images/{image_id}", {})
    record = agent.state / "ingest" / f"{image_id}.part.json"
    image, done = {}, 0
    while done < ARRIVED or not record.exists():
        image = (await agent.ask("GET", f"/v1/images/{image_id}")).body
        done = image["progress"]["bytes_done"] if image["progress"] else 0
    assert image["state"] == "downloading"
    return image_id


async def until_ready(agent: Agent, image_id: str) -> str:
    """Wait until the image is there; give the path of its base."""
    answer = await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    assert (answer.status, answer.body["state"]) == (200, "ready")
    return str(answer.body["base"]["path"])


def recorded(agent: Agent, image_id: str) -> int:
    """Give how much of a download the agent has written down to be there."""
    record = agent.state / "ingest" / f"{image_id}.part.json"
    present = int(json.loads(record.read_text())["present"])
    assert present in RECORDED
    return present


def digest_of(path: str) -> str:
    """Give the SHA-256 of a file."""
    with open(path, "rb") as file:  # noqa: PTH123 -- hashlib wants the file itself
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_killed_download_goes_on(agent: Agent, glance: LyingGlance) -> None:
    """After a SIGKILL in mid-download the next daemon goes on by itself where the record ends."""
    image_id = await download_halfway(agent, glance)
    await agent.kill()
    assert agent.left_in_ingest() == [f"{image_id}.part", f"{image_id}.part.json"]
    present = recorded(agent, image_id)
    await agent.start()
    base = await until_ready(agent, image_id)
    assert await asyncio.to_thread(digest_of, base) == hashlib.sha256(DATA).hexdigest()
    assert [seen.range for seen in glance.calls("data")] == [None, f"bytes={present}-"]
    assert agent.left_in_ingest() == []


async def test_killed_download_needs_no_request_to_go_on(agent: Agent, glance: LyingGlance) -> None:
    """What was coming when the daemon died comes, though nobody asks for it again."""
    image_id = await download_halfway(agent, glance)
    await agent.kill()
    await agent.start()
    while (await agent.ask("GET", f"/v1/images/{image_id}")).body["state"] != "ready":
        assert agent.left_in_ingest() or agent.bases()
    assert agent.left_in_ingest() == []


async def test_wrong_bytes_in_the_part_cost_time_only(agent: Agent, glance: LyingGlance) -> None:
    """A part that a crash of the machine has damaged is found out, and the download restarts."""
    image_id = await download_halfway(agent, glance)
    await agent.kill()
    present = recorded(agent, image_id)
    part = agent.state / "ingest" / f"{image_id}.part"
    with part.open("r+b") as file:
        file.write(b"damaged")
    await agent.start()
    base = await until_ready(agent, image_id)
    assert await asyncio.to_thread(digest_of, base) == hashlib.sha256(DATA).hexdigest()
    ranges = [seen.range for seen in glance.calls("data")]
    assert ranges == [None, f"bytes={present}-", None]
    assert agent.left_in_ingest() == []


async def test_orderly_stop_keeps_the_download(agent: Agent, glance: LyingGlance) -> None:
    """A daemon that is restarted for an upgrade loses nothing of what it had downloaded."""
    image_id = await download_halfway(agent, glance)
    assert await agent.stop() == 0
    await agent.start()
    await until_ready(agent, image_id)
    assert [seen.range for seen in glance.calls("data")] == [None, f"bytes={ARRIVED}-"]


async def test_disk_that_was_begun_is_not_pending_for_ever(
    agent: Agent, glance: LyingGlance
) -> None:
    """A disk whose creation died with the daemon is failed, and the same request makes it."""
    image_id = await download_halfway(agent, glance)
    key = "3f0a9f6e-6f3b-4d59-9a3a-1d8b1c7e9f00"
    path = f"/v1/instances/{key}/disks/root"
    begun = await agent.ask(
        "PUT", path, {"image_id": image_id}, headers={"Prefer": "respond-async"}
    )
    assert (begun.status, begun.body["state"]) == (202, "pending")
    await agent.kill()
    await agent.start()
    assert (await agent.ask("GET", path)).body["state"] == "failed"
    made = await agent.create(image_id, key)
    assert (made.status, made.body["state"]) == (201, "ready")


async def test_lost_catalog_is_made_anew_from_the_files(agent: Agent, glance: LyingGlance) -> None:
    """Without its catalog the agent finds bases and disks again, and downloads nothing."""
    image_id = glance.add(os.urandom(MIB), disk_format="raw")
    made = await agent.create(image_id, size_bytes=8 * MIB)
    assert await agent.stop() == 0
    for path in agent.state.glob("catalog.db*"):
        path.unlink()
    await agent.start()
    key = f"{made.body['instance_id']}/root"
    again = await agent.create(image_id, key, size_bytes=8 * MIB)
    assert (again.status, again.body["path"]) == (200, made.body["path"])
    assert again.body["base"] == made.body["base"]
    assert (await agent.create(image_id)).body["cache"] == "hit"
    assert len(glance.calls("data")) == 1
    begun_anew = [line for line in agent.log.splitlines() if "there is no catalog" in line]
    assert len(begun_anew) == 2  # the first start, and this one


async def test_second_daemon_on_one_state_folder_is_refused(agent: Agent, tmp_path: Path) -> None:
    """Two daemons never share a state folder: the second one says so and ends."""
    second = Agent(tmp_path, {**agent.settings, "storage": {"state_dir": str(agent.state)}})
    with pytest.raises(AssertionError, match="another agent holds"):
        await second.start()
    assert (await agent.ask("GET", "/readyz")).status == 200
