"""Every problem that the API can answer, provoked through the API of a real daemon."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.fakes import lying_glance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.agent import Answer
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
RAW = {"disk_format": "raw"}


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on that image service; it does not repeat what failed."""
    settings = without_keystone(glance.url, glance={"retries": 0})
    async with agent_on(settings) as running:
        yield running


def new_id() -> str:
    """Give the id of something that nobody has seen."""
    return str(uuid.uuid4())


async def create(
    agent: Agent, image_id: str, headers: dict[str, str] | None = None, **spec: object
) -> Answer:
    """Ask for a disk of a new instance."""
    path = f"/v1/instances/{new_id()}/disks/root"
    return await agent.ask("PUT", path, {"image_id": image_id, **spec}, headers=headers)


async def test_invalid_request(agent: Agent) -> None:
    """A mistake in a request is named by its field."""
    answer = await create(agent, new_id(), colour="red")
    assert (answer.status, answer.problem) == (400, "invalid-request")
    assert [error["field"] for error in answer.body["errors"]] == ["colour"]


async def test_unauthenticated(agent: Agent, glance: LyingGlance) -> None:
    """A token that nobody accepts gets nothing, not even what is cached."""
    image_id = glance.add(b"x" * MIB, **RAW)
    assert (await create(agent, image_id)).status == 201
    glance.always("show", lying_glance.status(401))
    answer = await create(agent, image_id, headers={"X-Auth-Token": "made-up"})
    assert (answer.status, answer.problem) == (401, "unauthenticated")


async def test_image_forbidden(agent: Agent, glance: LyingGlance) -> None:
    """Whoever may look at an image and not download it does not get it from the cache."""
    image_id = glance.add(b"x" * MIB, **RAW)
    assert (await create(agent, image_id)).status == 201
    glance.always("access", lying_glance.status(403))
    answer = await create(agent, image_id, headers={"X-Auth-Token": "a-reader"})
    assert (answer.status, answer.problem) == (403, "image-forbidden")
    assert answer.body["image_id"] == image_id


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_image_not_found(agent: Agent, method: str) -> None:
    """An image that does not exist can be neither prefetched nor shown nor evicted."""
    answer = await agent.ask(method, f"/v1/images/{new_id()}")
    assert (answer.status, answer.problem) == (404, "image-not-found")


async def test_disk_not_found(agent: Agent) -> None:
    """A disk that was never made is not found."""
    answer = await agent.ask("GET", f"/v1/instances/{new_id()}/disks/root")
    assert (answer.status, answer.problem) == (404, "disk-not-found")


async def test_instance_not_found(agent: Agent) -> None:
    """An instance without disks is not found."""
    answer = await agent.ask("GET", f"/v1/instances/{new_id()}")
    assert (answer.status, answer.problem) == (404, "instance-not-found")


async def test_image_not_active(agent: Agent, glance: LyingGlance) -> None:
    """An image that was deactivated is refused, with its state."""
    image_id = glance.add(b"x" * MIB, status="deactivated", **RAW)
    answer = await create(agent, image_id)
    assert (answer.status, answer.problem) == (409, "image-not-active")
    assert answer.body["image_status"] == "deactivated"


async def test_disk_conflict(agent: Agent, glance: LyingGlance) -> None:
    """One name never stands for two disks, and the answer shows the one that is there."""
    image_id, instance_id = glance.add(b"x" * MIB, **RAW), new_id()
    path = f"/v1/instances/{instance_id}/disks/root"
    spec = {"image_id": image_id, "size_bytes": 2 * MIB}
    assert (await agent.ask("PUT", path, spec)).status == 201
    answer = await agent.ask("PUT", path, {**spec, "size_bytes": 3 * MIB})
    assert (answer.status, answer.problem) == (409, "disk-conflict")
    assert answer.body["existing"]["virtual_size_bytes"] == 2 * MIB


async def test_base_in_use(agent: Agent, glance: LyingGlance) -> None:
    """A base is not evicted under its disk, and goes once the disk has gone."""
    image_id, instance_id = glance.add(b"x" * MIB, **RAW), new_id()
    await agent.ask("PUT", f"/v1/instances/{instance_id}/disks/root", {"image_id": image_id})
    answer = await agent.ask("DELETE", f"/v1/images/{image_id}")
    assert (answer.status, answer.problem) == (409, "base-in-use")
    assert answer.body["users"] == [{"kind": "disk", "instance_id": instance_id, "name": "root"}]
    assert (await agent.ask("DELETE", f"/v1/instances/{instance_id}/disks/root")).status == 204
    assert (await agent.ask("DELETE", f"/v1/images/{image_id}")).status == 204
    assert agent.bases() == []


async def test_overlay_of_somebody_else_keeps_the_base(agent: Agent, glance: LyingGlance) -> None:
    """A base is not evicted under an overlay that was made by hand."""
    image_id = glance.add(b"x" * MIB, **RAW)
    pulled = await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    by_hand = agent.state / "instances" / "mine.qcow2"
    command = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b")
    base = pulled.body["base"]["path"]
    await asyncio.to_thread(subprocess.run, [*command, base, by_hand], check=True)
    answer = await agent.ask("DELETE", f"/v1/images/{image_id}")
    assert (answer.status, answer.problem) == (409, "base-in-use")
    assert answer.body["users"] == [{"kind": "overlay", "path": str(by_hand)}]
    await asyncio.to_thread(by_hand.unlink)
    assert (await agent.ask("DELETE", f"/v1/images/{image_id}")).status == 204


async def test_image_unacceptable(agent: Agent, glance: LyingGlance) -> None:
    """An image that is not what it claims is refused by name of the rule, and leaves nothing."""
    answer = await create(agent, glance.add(b"x" * MIB, disk_format="qcow2"))
    assert (answer.status, answer.problem) == (422, "image-unacceptable")
    assert answer.body["reason"] == "format-mismatch"
    assert agent.left_in_ingest() == []


async def test_failed_image_can_be_forgotten(agent: Agent, glance: LyingGlance) -> None:
    """An image that was refused is shown with the reason until an operator evicts it."""
    image_id = glance.add(b"x" * MIB, disk_format="qcow2")
    await create(agent, image_id)
    shown = await agent.ask("GET", f"/v1/images/{image_id}")
    assert (shown.status, shown.body["state"]) == (200, "failed")
    assert (await agent.ask("DELETE", f"/v1/images/{image_id}")).status == 204
    assert (await agent.ask("GET", f"/v1/images/{image_id}")).problem == "image-not-found"


async def test_disk_too_small(agent: Agent, glance: LyingGlance) -> None:
    """A disk that would cut the image off is refused with both sizes."""
    answer = await create(agent, glance.add(b"x" * MIB, **RAW), size_bytes=4096)
    assert (answer.status, answer.problem) == (422, "disk-too-small")
    assert (answer.body["required_bytes"], answer.body["requested_bytes"]) == (MIB, 4096)


async def test_disk_below_min_disk(agent: Agent, glance: LyingGlance) -> None:
    """The smallest disk that the image's owner allows is respected."""
    answer = await create(agent, glance.add(b"x" * MIB, min_disk=1, **RAW), size_bytes=2 * MIB)
    assert (answer.status, answer.problem) == (422, "disk-too-small")
    assert answer.body["required_bytes"] == 1 << 30


async def test_digest_mismatch(agent: Agent, glance: LyingGlance) -> None:
    """Bytes that are not those of the image never become a base."""
    answer = await create(agent, glance.add(b"x" * MIB, os_hash_value="0" * 128, **RAW))
    assert (answer.status, answer.problem) == (502, "digest-mismatch")
    assert answer.body["algorithm"] == "sha512"
    assert answer.body["expected"] == "0" * 128
    assert agent.left_in_ingest() == agent.bases() == []


async def test_glance_refused(agent: Agent, glance: LyingGlance) -> None:
    """An answer of Glance that no retry will change is passed on with its status."""
    image_id = glance.add(b"x" * MIB, **RAW)
    glance.always("data", lying_glance.status(410))
    answer = await create(agent, image_id)
    assert (answer.status, answer.problem) == (502, "glance-refused")
    assert answer.body["glance_status"] == 410


async def test_glance_unavailable(agent: Agent, glance: LyingGlance) -> None:
    """While Glance is away a new image has to wait, and a cached one is served."""
    cached, wanted = glance.add(b"x" * MIB, **RAW), glance.add(b"y" * MIB, **RAW)
    assert (await create(agent, cached)).body["cache"] == "miss"
    glance.always("show", lying_glance.status(503))
    answer = await create(agent, wanted)
    assert (answer.status, answer.problem) == (503, "glance-unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert (await create(agent, cached)).body["cache"] == "hit"


async def test_shutting_down(agent: Agent, glance: LyingGlance) -> None:
    """Whoever waits for a download when the daemon stops is told to come again."""
    image_id = glance.add(b"x" * MIB, **RAW)
    gate = asyncio.Event()
    glance.always("data", lying_glance.held(gate))
    waiting = asyncio.ensure_future(create(agent, image_id))
    while not glance.calls("data"):
        await asyncio.wait({waiting}, timeout=0.01)
    agent.send(signal.SIGTERM)
    answer = await waiting
    gate.set()
    assert (answer.status, answer.problem) == (503, "shutting-down")
    assert int(answer.headers["Retry-After"]) > 0


async def test_insufficient_space(agent: Agent, glance: LyingGlance) -> None:
    """What can never fit is refused at once, with the figures."""
    image_id = glance.add(b"x" * MIB, size=1 << 50, **RAW)
    async with agent_on(
        {**agent.settings, "images": {"max_size": 1 << 60, "max_virtual_size": 1 << 60}}
    ) as large:
        answer = await create(large, image_id)
    assert (answer.status, answer.problem) == (507, "insufficient-space")
    assert answer.body["required_bytes"] == 1 << 50
    assert 0 < answer.body["available_bytes"] < 1 << 50
    assert glance.calls("data") == []
