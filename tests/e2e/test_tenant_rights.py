"""Who may what: every route of the API, asked by everybody, in a real cloud."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cacheagent.api.routes import ROUTES
from tests.e2e.agent import Agent, Answer, bearing
from tests.e2e.openstack import agent_in, some_data, token_of, upload
from tests.fakes.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.api.table import Route
    from tests.openstack.cloud import Cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK_ALWAYS = {"access_ttl": 0}
INVENTED = "made-up"
NAME = "alices-own"

ALL = (200, 200, 200, 401, 401)
HERS = (200, 200, 404, 401, 401)
STEERED = (204, 403, 404, 401, 401)
REMOVED = (204, 204, 403, 401, 401)
OPEN = (200, 200, 200, 200, 200)

RIGHTS = {
    "disk_create": HERS,
    "disk_show": HERS,
    "disk_delete": REMOVED,
    "instance_list": ALL,
    "instance_show": HERS,
    "instance_delete": REMOVED,
    "image_list": ALL,
    "image_show": HERS,
    "image_prefetch": HERS,
    # It is in use by the disk that is there.
    "image_evict": (409, 409, 404, 401, 401),
    "image_why": HERS,
    "image_verify": (200, 403, 404, 401, 401),
    "image_pin": STEERED,
    "image_unpin": STEERED,
    "prune": (200, 403, 403, 401, 401),
    "events": ALL,
    "status": ALL,
    "healthz": OPEN,
    "readyz": OPEN,
    "metrics": OPEN,
    "openapi": OPEN,
    "page": OPEN,
}
"""What each gets for a private image of alice: nobody, alice, bob, who has a token of alice's that
was revoked, who made one up."""

VISIBLE = {"instance_list", "image_list", "status"}
"""Routes that everybody may ask, and where not everybody may see all."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(cloud: Cloud) -> AsyncIterator[Agent]:
    """Run one daemon, which asks Glance about each request that bears a token."""
    async with agent_in(cloud, ASK_ALWAYS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image_id(cloud: Cloud) -> str:
    """Make a private image of alice's project."""
    return await upload(cloud, "alice", some_data(), name=NAME)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def revoked(cloud: Cloud) -> str:
    """Give a token of alice that was revoked before Glance saw it."""
    token = await token_of(cloud, "alice")
    await asyncio.to_thread(cloud.revoke, token)
    return token


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(cloud: Cloud, revoked: str) -> str:  # noqa: ARG001  revoked before: by the second
    """Give a token of alice."""
    return await token_of(cloud, "alice")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranger(cloud: Cloud) -> str:
    """Give a token of bob."""
    return await token_of(cloud, "bob")


async def ask(agent: Agent, route: Route, image: str, instance: str, token: str | None) -> Answer:
    """Ask a route about an image and the disk ``root`` of an instance."""
    path = route.path.format(image_id=image, instance_id=instance, name="root")
    body = None
    if route.body is not None:
        body = {"image_id": image} if route.operation == "disk_create" else {}
    # A stream goes on for ever; whether it may begin is told by its head.
    method = "HEAD" if route.stream else route.method
    return await agent.ask(method, path, body, headers=bearing(token))


async def test_no_route_is_forgotten() -> None:
    """Whoever adds a route says here who may use it."""
    assert set(RIGHTS) == {route.operation for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
async def test_who_may_what(
    agent: Agent, image_id: str, owner: str, stranger: str, revoked: str, route: Route
) -> None:
    """Each route gives everybody what is theirs, and tells a stranger nothing of the image."""
    instance = str(uuid.uuid4())
    made = await agent.create(image_id, f"{instance}/root", token=owner)
    assert made.status == 201
    found = {}
    # Whoever may do it comes last: then it may be gone.
    for who, token in reversed([*enumerate((None, owner, stranger, revoked, INVENTED))]):
        found[who] = await ask(agent, route, image_id, instance, token)
    assert tuple(found[who].status for who in sorted(found)) == RIGHTS[route.operation]
    if route.operation in VISIBLE | {"prune"} or RIGHTS[route.operation] is not OPEN:
        for who in (2, 3, 4):
            tells_nothing(found[who], image_id, instance, made)


def tells_nothing(answer: Answer, image_id: str, instance: str, made: Answer) -> None:
    """See that an answer has none of what is alice's, but for what its request named."""
    told = f"{answer.body} {answer.headers}"
    assert NAME not in told
    assert made.body["base"]["base_id"] not in told
    if answer.status < 400:
        assert image_id not in told
        assert instance not in told


@pytest.mark.parametrize(
    "operation", [name for name, rights in RIGHTS.items() if rights[2] == 404 and "image" in name]
)
async def test_private_is_as_if_it_were_not(
    agent: Agent, image_id: str, stranger: str, operation: str
) -> None:
    """A cached private image and one that never was get a stranger the very same answer."""
    route = next(route for route in ROUTES if route.operation == operation)
    seen = []
    for image in (image_id, str(uuid.uuid4())):
        answer = await ask(agent, route, image, str(uuid.uuid4()), stranger)
        headers = {k: v for k, v in answer.headers.items() if "request-id" not in k.lower()}
        headers.pop("Date", None)
        seen.append((answer.status, headers, re.sub(image, "", str(answer.body))))
    assert seen[0] == seen[1]


async def test_stranger_in_the_way(
    agent: Agent, cloud: Cloud, image_id: str, owner: str, stranger: str
) -> None:
    """Who asks for a disk where somebody else's is learns of the conflict, and not of its image."""
    instance = str(uuid.uuid4())
    assert (await agent.create(image_id, f"{instance}/root", token=owner)).status == 201
    other = await upload(cloud, "bob", some_data())
    for wanted, size in ((other, None), (None, 1 << 20)):
        spec = {} if size is None else {"size_bytes": size}
        answer = await agent.create(wanted, f"{instance}/root", token=stranger, **spec)
        assert (answer.status, answer.problem, answer.body["existing"]) == (
            *(409, "disk-conflict"),
            {},
        )
        assert image_id not in str(answer.body)


async def test_users_are_unnamed(agent: Agent, cloud: Cloud, owner: str, stranger: str) -> None:
    """A tenant learns that an image of all is in use, and not whose instances use it."""
    image = await upload(cloud, "admin", some_data(), visibility="public")
    instance = str(uuid.uuid4())
    assert (await agent.create(image, f"{instance}/root", token=owner)).status == 201
    headers = bearing(stranger)
    shown = (await agent.ask("GET", f"/v1/images/{image}", headers=headers)).body
    assert (shown["in_use"], shown["users"]) == (True, [{"kind": "disk"}])
    why = (await agent.ask("GET", f"/v1/images/{image}/why", headers=headers)).body
    refused = await agent.ask("DELETE", f"/v1/images/{image}", headers=headers)
    assert (refused.status, refused.problem) == (403, "operator-only")
    assert instance not in f"{why} {refused.body}"


async def test_tokens_are_nowhere(cloud: Cloud, revoked: str) -> None:
    """No token is in the log, in a file of the agent, in a metric, or in an answer."""
    image = await upload(cloud, "alice", some_data())
    log = {"level": "debug", "format": "json"}
    async with (
        Proxy(cloud.glance_url) as proxy,
        agent_in(cloud, {"endpoint": proxy.url, **ASK_ALWAYS}, log=log) as agent,
    ):
        tokens = {user: await token_of(cloud, user) for user in ("alice", "bob")}
        given = [*tokens.values(), revoked, INVENTED + "-token"]
        answers = [await agent.create(image, token=token) for token in given]
        answers.append(await agent.ask("GET", "/metrics"))
        assert {answer.status for answer in answers} == {201, 404, 401, 200}
        own = {request.headers.get("X-Service-Token") for request in proxy.requests} - {None}
        assert own
        kept = [path.read_bytes() for path in agent.folder.rglob("*") if path.is_file()]
        kept += [f"{answer.body} {answer.headers}".encode() for answer in answers]
        for token in (*given, *own):
            assert not any(str(token).encode() in each for each in kept)


async def test_token_that_ran_out(expiring_cloud: Cloud) -> None:
    """With a token that has run out no route does anything but those that look at none."""
    token = await token_of(expiring_cloud, "alice")
    await asyncio.to_thread(expiring_cloud.outlive, token)
    image, instance = str(uuid.uuid4()), str(uuid.uuid4())
    async with agent_in(expiring_cloud) as agent:
        for route in ROUTES:
            answer = await ask(agent, route, image, instance, token)
            expected = 200 if RIGHTS[route.operation] is OPEN else 401
            assert answer.status == expected, route.operation
