"""Images of a real Glance become disks, whatever their format and however the agent logs in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.e2e import qemu
from tests.e2e.agent import Agent, agent_on
from tests.e2e.openstack import MIB, agent_in, some_data, token_of, upload
from tests.fakes.proxy import Proxy
from tests.images import CONVERTED, ISO, real_images

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.openstack.cloud import Cloud

POLL_SECONDS = 0.2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(cloud: Cloud) -> AsyncIterator[Agent]:
    """Run one daemon for all tests that need no other; each brings images of its own."""
    async with agent_in(cloud, {"retries": 0}) as running:
        yield running


async def requests(agent: Agent, call: str, status: int) -> float:
    """Read how many requests of a kind the agent has sent to Glance."""
    return await agent.metric(f'glance_requests_total{{call="{call}",status="{status}"}}')


# How the agent logs in.


async def test_logs_in_with_a_password(agent: Agent, cloud: Cloud) -> None:
    """An entry of clouds.yaml with a user and a password is enough to fetch a public image."""
    data = some_data()
    image_id = await upload(cloud, "admin", data, visibility="public")
    answer = await agent.create(image_id)
    assert (answer.status, answer.body["cache"]) == (201, "miss")
    assert await qemu.content(answer.body["path"], "qcow2", MIB) == data


async def test_logs_in_with_an_application_credential(cloud: Cloud) -> None:
    """An entry with an application credential does as well, for tenants' images too."""
    await asyncio.to_thread(cloud.add_application_credential, "cacheagent", "agent-application")
    public = await upload(cloud, "admin", some_data(), visibility="public")
    private = await upload(cloud, "alice", some_data())
    async with agent_in(cloud, {"cloud": "agent-application"}) as agent:
        assert (await agent.create(public)).status == 201
        token = await token_of(cloud, "alice")
        assert (await agent.create(private, token=token)).status == 201


async def test_logs_in_with_variables(cloud: Cloud) -> None:
    """Without an entry the OS_* variables say who the agent is."""
    image_id = await upload(cloud, "admin", some_data(), visibility="public")
    async with agent_on({}, cloud.environment("cacheagent")) as agent:
        assert (await agent.create(image_id)).status == 201


async def test_wrong_password_is_told(cloud: Cloud) -> None:
    """An agent with a wrong password starts, serves, and says what Keystone thinks of it."""
    image_id = await upload(cloud, "admin", some_data(), visibility="public")
    environment = {**cloud.environment("cacheagent"), "OS_PASSWORD": "wrong"}
    async with agent_on({}, environment) as agent:
        answer = await agent.create(image_id)
        assert (answer.status, answer.problem) == (502, "glance-refused")
        assert answer.body["glance_status"] == 401
        assert "does not accept the agent's credentials" in answer.body["detail"]
        assert await agent.metric("token_refresh_failures_total") == 1


async def test_revoked_token_is_replaced(cloud: Cloud) -> None:
    """When Glance does not take the agent's token any more, the agent gets another by itself."""
    image_id = await upload(cloud, "admin", some_data(), visibility="public")
    async with Proxy(cloud.glance_url) as proxy, agent_in(cloud, {"endpoint": proxy.url}) as agent:
        # Glance believes a token that it has seen: this one is revoked on its first way there.
        pause = proxy.interrupt(image_id, after=0)
        asked = asyncio.ensure_future(agent.create(image_id))
        await pause.reached()
        revoked = proxy.requests[-1].headers["X-Auth-Token"]
        await asyncio.to_thread(cloud.revoke, revoked)
        pause.cut()
        answer = await asked
        # A token of the last seconds is not replaced at once, lest Keystone be flooded.
        while answer.status != 201:
            assert answer.body["glance_status"] == 401
            await asyncio.sleep(POLL_SECONDS)
            answer = await agent.create(image_id)
        assert proxy.requests[-1].headers["X-Auth-Token"] != revoked


# What the images are.


@pytest.mark.parametrize("name", ["disk.raw", *CONVERTED, ISO])
async def test_format(agent: Agent, cloud: Cloud, name: str) -> None:
    """An image of each format becomes a disk with the content of the disk it was made of."""
    images = await asyncio.to_thread(real_images)
    image = images[name]
    image_id = await upload(cloud, "alice", image.path, image.disk_format)
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.body["cache"]) == (201, "miss")
    base, size = answer.body["base"], image.virtual_size_bytes
    overlay, backing = await qemu.chain(answer.body["path"])
    assert (overlay["format"], overlay["full-backing-filename"]) == ("qcow2", base["path"])
    assert overlay["backing-filename-format"] == backing["format"] == base["format"] == "raw"
    assert overlay["virtual-size"] == backing["virtual-size"] == size
    original = (image if name == ISO else images["disk.raw"]).path.read_bytes()
    assert Path(base["path"]).read_bytes() == original
    flat = f"{answer.body['path']}.flat"
    await qemu.qemu_img("convert", "-f", "qcow2", "-O", "raw", answer.body["path"], flat)
    assert Path(flat).read_bytes() == original
    await qemu.check(answer.body["path"])


async def test_keep_leaves_qcow2_as_it_came(cloud: Cloud) -> None:
    """With ``keep`` a qcow2 image is its own base, and a format that no base has is converted."""
    images = await asyncio.to_thread(real_images)
    original = images["disk.raw"].path.read_bytes()
    token = await token_of(cloud, "alice")
    async with agent_in(cloud, images={"base_format": "keep"}) as agent:
        for name in ("disk.qcow2", "disk-v2-compressed.qcow2", "disk.vmdk"):
            image = images[name]
            image_id = await upload(cloud, "alice", image.path, image.disk_format)
            answer = await agent.create(image_id, token=token)
            kept = image.disk_format == "qcow2"
            overlay, backing = await qemu.chain(answer.body["path"])
            assert overlay["backing-filename-format"] == backing["format"]
            assert backing["format"] == ("qcow2" if kept else "raw")
            expected = image.path.read_bytes() if kept else original
            assert Path(answer.body["base"]["path"]).read_bytes() == expected
            assert await qemu.content(answer.body["path"], "qcow2", 64 * MIB) == original


async def test_equal_content_is_downloaded_once(agent: Agent, cloud: Cloud) -> None:
    """Two tenants' images with the same bytes have the same digest: one download, one base."""
    data, downloads = some_data(), await requests(agent, "data", 200)
    first, second = [
        await agent.create(await upload(cloud, user, data), token=await token_of(cloud, user))
        for user in ("alice", "bob")
    ]
    assert (first.status, second.status) == (201, 201)
    assert first.body["base"] == second.body["base"]
    assert (first.body["cache"], second.body["cache"]) == ("miss", "hit")
    assert await requests(agent, "data", 200) == downloads + 1


async def test_image_without_a_digest(agent: Agent, cloud: Cloud) -> None:
    """Old images have an MD5 only: they come too, and equal ones are still stored once."""
    data, token = some_data(), await token_of(cloud, "alice")
    bases = []
    for _ in range(2):
        image_id = await upload(cloud, "alice", data)
        await asyncio.to_thread(cloud.forget_digests, image_id)
        answer = await agent.create(image_id, token=token)
        assert answer.status == 201
        bases.append(answer.body["base"])
    assert bases[0] == bases[1]
    assert bases[0]["base_id"].startswith("sha256-")
    assert Path(bases[0]["path"]).read_bytes() == data


async def test_min_disk(agent: Agent, cloud: Cloud) -> None:
    """A disk is not smaller than the owner of the image wants it, and may be larger."""
    image_id = await upload(cloud, "alice", some_data(), min_disk=1)
    token = await token_of(cloud, "alice")
    answer = await agent.create(image_id, token=token, size_bytes=(1 << 30) - 512)
    assert (answer.status, answer.problem) == (422, "disk-too-small")
    assert answer.body["required_bytes"] == 1 << 30
    answer = await agent.create(image_id, token=token, size_bytes=1 << 30)
    assert (answer.status, answer.body["virtual_size_bytes"]) == (201, 1 << 30)


async def test_queued_image(agent: Agent, cloud: Cloud) -> None:
    """An image whose data were never uploaded is refused with its status."""
    image_id = await asyncio.to_thread(cloud.create, "alice", "qcow2")
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (409, "image-not-active")
    assert answer.body["image_status"] == "queued"


async def test_qcow2_that_glance_takes_for_raw(agent: Agent, cloud: Cloud) -> None:
    """What Glance lets in under a wrong name is not let in here (CVE-2024-40767)."""
    image = (await asyncio.to_thread(real_images))["disk.qcow2"]
    image_id = await upload(cloud, "alice", image.path, "raw")
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (422, "image-unacceptable")
    assert answer.body["reason"] == "format-mismatch"


# What a store can do to them.


async def test_flipped_bit(agent: Agent, cloud: Cloud) -> None:
    """A store that has changed a bit of the image does not get it past its digest."""
    image_id = await upload(cloud, "alice", data := some_data())
    cloud.stored(image_id).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (502, "digest-mismatch")
    assert answer.body["algorithm"] == "sha512"


async def test_data_cut_short(agent: Agent, cloud: Cloud) -> None:
    """A store that has lost the end of the image makes no base of what is left."""
    image_id = await upload(cloud, "alice", data := some_data())
    cloud.stored(image_id).write_bytes(data[: MIB // 2])
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (503, "glance-unavailable")


async def test_data_gone(agent: Agent, cloud: Cloud) -> None:
    """An active image whose file has gone from the store is no empty image."""
    image_id = await upload(cloud, "alice", some_data())
    cloud.stored(image_id).unlink()
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (502, "glance-refused")


async def test_metrics_count_requests_to_glance(cloud: Cloud) -> None:
    """Each request to Glance is counted by what it was for and how it was answered."""
    image_id = await upload(cloud, "alice", some_data())
    alice, bob = [await token_of(cloud, user) for user in ("alice", "bob")]
    async with agent_in(cloud) as agent:
        statuses = [
            (await agent.create(image_id, token=token)).status for token in (alice, alice, bob)
        ]
        assert statuses == [201, 201, 404]
        assert await requests(agent, "versions", 300) == 1
        # Alice is asked about once, the image is described once for its ingest.
        assert await requests(agent, "show", 200) == 2
        assert await requests(agent, "show", 404) == 1
        assert await requests(agent, "access", 206) == 1
        assert await requests(agent, "data", 200) == 1
        for result in ("allowed", "remembered", "denied"):
            assert await agent.metric(f'access_checks_total{{result="{result}"}}') == 1
