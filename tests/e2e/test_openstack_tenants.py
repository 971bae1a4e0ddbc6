"""Who gets which image of a real Glance: tenants, their tokens, and how long those live."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.e2e.agent import Agent, bearing
from tests.e2e.openstack import MIB, agent_in, some_data, token_of, upload
from tests.fakes.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.openstack.cloud import Cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK_ALWAYS = {"access_ttl": 0}
INVENTED = "made-up"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(cloud: Cloud) -> AsyncIterator[Agent]:
    """Run one daemon, which asks Glance about each request that bears a token."""
    async with agent_in(cloud, ASK_ALWAYS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def private(cloud: Cloud) -> str:
    """Make a private image of alice's project."""
    return await upload(cloud, "alice", some_data())


async def status_for(agent: Agent, cloud: Cloud, user: str | None, image_id: str) -> int:
    """Ask for a disk with a user's token, or with none, and give the status of the answer."""
    token = None if user is None else await token_of(cloud, user)
    return (await agent.create(image_id, token=token)).status


# Whose image it is.


async def test_tenant_gets_its_private_image(agent: Agent, cloud: Cloud) -> None:
    """A tenant's own image comes with its token, beside which the agent's own would not do."""
    image_id = await upload(cloud, "alice", data := some_data())
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.body["cache"]) == (201, "miss")
    assert Path(answer.body["base"]["path"]).read_bytes() == data


@pytest.mark.parametrize("cached", [False, True])
async def test_other_tenant_gets_404(
    agent: Agent, cloud: Cloud, private: str, *, cached: bool
) -> None:
    """To another project a private image does not exist, even if it lies in the cache."""
    if cached:
        assert await status_for(agent, cloud, "alice", private) == 201
    answer = await agent.create(private, token=await token_of(cloud, "bob"))
    assert (answer.status, answer.problem) == (404, "image-not-found")
    assert f"{private}.part" not in agent.left_in_ingest()


async def test_other_tenant_cannot_touch_it(agent: Agent, cloud: Cloud, private: str) -> None:
    """No other way leads to another project's image: to show, fetch, evict or pin it."""
    assert await status_for(agent, cloud, "alice", private) == 201
    headers = bearing(await token_of(cloud, "bob"))
    for way in ("GET", "PUT", "DELETE", "PUT /pin", "DELETE /pin"):
        method, _, what = way.partition(" ")
        answer = await agent.ask(method, f"/v1/images/{private}{what}", headers=headers)
        assert (answer.status, answer.problem) == (404, "image-not-found"), way


async def test_lists_have_what_the_tenant_may_see(agent: Agent, cloud: Cloud, private: str) -> None:
    """A tenant's list of the cached images has its own and nobody else's."""
    assert await status_for(agent, cloud, "alice", private) == 201
    seen = {}
    for user in ("alice", "bob"):
        headers = bearing(await token_of(cloud, user))
        listed = (await agent.ask("GET", "/v1/images", headers=headers)).body["images"]
        seen[user] = {image["image_id"] for image in listed}
    assert private in seen["alice"]
    assert private not in seen["bob"]


async def test_crowd_of_two_tenants(agent: Agent, cloud: Cloud, private: str) -> None:
    """Who may not have the image gets nothing of the download that the owner waits for."""
    tokens = {user: await token_of(cloud, user) for user in ("alice", "bob")}
    users = ["bob", "alice"] * 4
    answers = await asyncio.gather(*(agent.create(private, token=tokens[user]) for user in users))
    assert [answer.status for answer in answers] == [404, 201] * 4


async def test_without_a_token_the_agents_own_decides(
    agent: Agent, cloud: Cloud, private: str
) -> None:
    """An agent that is a member of its own project does not see a tenant's image, but has it."""
    answer = await agent.create(private)
    assert (answer.status, answer.problem) == (404, "image-not-found")
    assert await status_for(agent, cloud, "alice", private) == 201
    assert (await agent.create(private)).body["cache"] == "hit"


async def test_glance_is_away(cloud: Cloud, private: str) -> None:
    """While Glance is away a hit needs no token, and a token cannot be judged."""
    token = await token_of(cloud, "alice")
    async with (
        Proxy(cloud.glance_url) as proxy,
        agent_in(cloud, {"endpoint": proxy.url, "retries": 0, **ASK_ALWAYS}) as agent,
    ):
        assert (await agent.create(private, token=token)).status == 201
        await proxy.close()
        answer = await agent.create(private)
        assert (answer.status, answer.body["cache"]) == (201, "hit")
        answer = await agent.create(private, token=token)
        assert (answer.status, answer.problem) == (503, "glance-unavailable")


@pytest.mark.parametrize("cached", [False, True])
async def test_reader_may_only_look(
    agent: Agent, cloud: Cloud, private: str, *, cached: bool
) -> None:
    """Whoever may look at an image in Glance and not download it gets no disk of it."""
    if cached:
        assert await status_for(agent, cloud, "alice", private) == 201
    answer = await agent.create(private, token=await token_of(cloud, "carol"))
    assert (answer.status, answer.problem) == (403, "image-forbidden")
    assert answer.body["image_id"] == private


async def test_shared_image(agent: Agent, cloud: Cloud) -> None:
    """An image that is shared with a project is that project's as well, while it is shared."""
    image_id = await upload(cloud, "alice", some_data(), visibility="shared")
    assert await status_for(agent, cloud, "bob", image_id) == 404
    await asyncio.to_thread(cloud.share, image_id, "alice", "bob")
    assert await status_for(agent, cloud, "bob", image_id) == 201
    await asyncio.to_thread(cloud.unshare, image_id, "alice", "bob")
    assert await status_for(agent, cloud, "bob", image_id) == 404


@pytest.mark.parametrize(("owner", "visibility"), [("admin", "public"), ("alice", "community")])
async def test_image_for_all(agent: Agent, cloud: Cloud, owner: str, visibility: str) -> None:
    """A public image and one of the community are for every tenant, and for no tenant at all."""
    image_id = await upload(cloud, owner, some_data(), visibility=visibility)
    users = (None, "alice", "bob")
    statuses = [await status_for(agent, cloud, user, image_id) for user in users]
    assert statuses == [201] * 3


# What became of the image.


@pytest.mark.parametrize("cached", [False, True])
async def test_deactivated_image(agent: Agent, cloud: Cloud, private: str, *, cached: bool) -> None:
    """A deactivated image is for nobody, an administrator included, who could download it."""
    if cached:
        assert await status_for(agent, cloud, "alice", private) == 201
    await asyncio.to_thread(cloud.deactivate, private)
    for user in ("alice", "admin"):
        answer = await agent.create(private, token=await token_of(cloud, user))
        assert (answer.status, answer.problem) == (409, "image-not-active"), user
        assert answer.body["image_status"] == "deactivated"


@pytest.mark.parametrize("cached", [False, True])
async def test_deleted_image(agent: Agent, cloud: Cloud, private: str, *, cached: bool) -> None:
    """An image that its owner has deleted in Glance is gone for the owner here too."""
    if cached:
        assert await status_for(agent, cloud, "alice", private) == 201
    await asyncio.to_thread(cloud.delete, private)
    answer = await agent.create(private, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (404, "image-not-found")


async def test_agent_notices_what_became_of_an_image(cloud: Cloud) -> None:
    """Without a token too, an image is served while it is active, and costs one download."""
    image_id = await upload(cloud, "admin", some_data(), visibility="public")
    log = {"format": "json"}
    async with agent_in(cloud, {"revalidate_interval": 1}, log=log) as agent:
        assert (await agent.create(image_id)).status == 201
        await asyncio.to_thread(cloud.deactivate, image_id)
        await stands(agent, "deactivated")
        answer = await agent.create(image_id)
        assert (answer.status, answer.problem) == (409, "image-not-active")
        await asyncio.to_thread(cloud.reactivate, image_id)
        answer = await agent.create(image_id)
        assert (answer.status, answer.body["cache"]) == (201, "hit")
        await asyncio.to_thread(cloud.delete, image_id)
        await stands(agent, "gone")
        answer = await agent.create(image_id)
        assert (answer.status, answer.problem) == (404, "image-not-found")
        assert len(agent.lines("published")) == 1


async def stands(agent: Agent, standing: str) -> None:
    """Wait until the agent has noticed what Glance says of an image now."""
    number, said = 0, ""
    while said != standing:
        number += 1
        line = await agent.logged("what Glance says of an image changed", number)
        said = line["standing"]


# What became of the token.


async def test_made_up_token(agent: Agent, cloud: Cloud) -> None:
    """A token that Keystone never gave is worth less than none, whether on a miss or a hit."""
    image_id = await upload(cloud, "admin", some_data(), visibility="public")
    for result in ("miss", "hit"):
        refused = await agent.create(image_id, token=INVENTED)
        assert (refused.status, refused.problem) == (401, "unauthenticated")
        assert (await agent.create(image_id)).body["cache"] == result


async def test_revoked_token(agent: Agent, cloud: Cloud, private: str) -> None:
    """The agent's own token beside it keeps a token alive that ran out, and none that was revoked.

    Glance has not seen the second token before: else it would believe it for a while.
    """
    token = await token_of(cloud, "alice")
    assert (await agent.create(private, token=token)).status == 201
    token = await token_of(cloud, "alice")
    await asyncio.to_thread(cloud.revoke, token)
    answer = await agent.create(private, token=token)
    assert (answer.status, answer.problem) == (401, "unauthenticated")


async def test_token_runs_out_in_the_middle_of_a_download(expiring_cloud: Cloud) -> None:
    """A download that breaks after its token has run out goes on where it was."""
    image_id = await upload(expiring_cloud, "alice", data := some_data(4 * MIB))
    async with (
        Proxy(expiring_cloud.glance_url) as proxy,
        agent_in(expiring_cloud, {"endpoint": proxy.url}) as agent,
    ):
        pause = proxy.interrupt("/file", after=MIB)
        token = await token_of(expiring_cloud, "alice")
        asked = asyncio.ensure_future(agent.create(image_id, token=token))
        await pause.reached()
        await asyncio.to_thread(expiring_cloud.outlive, token)
        pause.cut()
        answer = await asked
        assert (answer.status, answer.body["cache"]) == (201, "miss")
        assert Path(answer.body["base"]["path"]).read_bytes() == data
        resumed = await agent.metric("download_resumed_bytes_total")
        assert 0 < resumed < MIB
        first, second = (request.headers for request in proxy.requests[-2:])
        assert (first.get("Range"), second.get("Range")) == (None, f"bytes={int(resumed)}-")
        assert first["X-Auth-Token"] == second["X-Auth-Token"] == token
        assert first["X-Service-Token"] != second["X-Service-Token"]


async def test_tokens_run_out_between_two_requests(expiring_cloud: Cloud) -> None:
    """With a token that has run out nobody begins anything; the agent gets itself a new one."""
    first, second = [await upload(expiring_cloud, "alice", some_data()) for _ in range(2)]
    public = await upload(expiring_cloud, "admin", some_data(), visibility="public")
    token = await token_of(expiring_cloud, "alice")
    async with (
        Proxy(expiring_cloud.glance_url) as proxy,
        agent_in(expiring_cloud, {"endpoint": proxy.url, **ASK_ALWAYS}) as agent,
    ):
        assert (await agent.create(first, token=token)).status == 201
        own = proxy.requests[-1].headers["X-Service-Token"]
        assert own != token
        for ending in (token, own):
            await asyncio.to_thread(expiring_cloud.outlive, ending)
        # With the agent's own beside it, Glance would take what ran out less than two days ago.
        for image_id in (first, second):
            answer = await agent.create(image_id, token=token)
            assert (answer.status, answer.problem) == (401, "unauthenticated")
        assert (await agent.create(public)).status == 201
        assert proxy.requests[-1].headers["X-Auth-Token"] != own
