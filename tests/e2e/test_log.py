"""What the log of a daemon tells, and what it never tells."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.e2e.agent import Agent, agent_on, bearing, without_keystone
from tests.fakes import lying_glance
from tests.fakes.keystone import PASSWORD, FakeKeystone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
REQUEST_ID = "X-OpenStack-Request-ID"


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on it that logs as JSON."""
    settings = without_keystone(glance.url, log={"format": "json"}, glance={"retries": 1})
    async with agent_on(settings) as running:
        yield running


async def test_request_is_followed_by_its_id(agent: Agent, glance: LyingGlance) -> None:
    """One id leads from the scheduler's log to ours and to Glance's, and back in the answer."""
    request_id = f"req-{uuid.uuid4()}"
    image_id = glance.add(b"x" * MIB)
    glance.lie("data", lying_glance.cut(after=4))
    path = f"/v1/instances/{uuid.uuid4()}/disks/root"
    answer = await agent.ask("PUT", path, {"image_id": image_id}, headers={REQUEST_ID: request_id})
    assert (answer.status, answer.headers[REQUEST_ID]) == (201, request_id)
    for call in ("show", "data"):
        assert {seen.headers[REQUEST_ID] for seen in glance.calls(call)} == {request_id}
    for event in ("request", "glance_failure", "published"):
        assert [line["request_id"] for line in agent.lines(event)] == [request_id]
    (line,) = agent.lines("request")
    assert (line["method"], line["path"], line["status"]) == ("PUT", path, 201)
    assert (line["operation"], line["result"]) == ("disk_create", "miss")


async def test_work_behind_the_answer_bears_the_id_too(agent: Agent, glance: LyingGlance) -> None:
    """A prefetch that fails after its answer is found by the id of the request."""
    request_id = f"req-{uuid.uuid4()}"
    image_id = glance.add(b"x" * MIB, os_hash_value="0" * 128)
    answer = await agent.ask("PUT", f"/v1/images/{image_id}", {}, headers={REQUEST_ID: request_id})
    assert answer.status == 202
    for event in ("no base", "background work failed"):
        line = await agent.logged(event)
        assert (line["word"], line["request_id"]) == ("digest-mismatch", request_id)


async def test_request_without_an_id_gets_one(agent: Agent) -> None:
    """Requests of a client that knows nothing of ids are told apart all the same."""
    answers = [await agent.ask("GET", "/v1/instances") for _ in range(2)]
    ids = [answer.headers[REQUEST_ID] for answer in answers]
    assert len(set(ids)) == 2
    assert [line["request_id"] for line in agent.lines("request")] == ids


async def test_every_line_is_json(agent: Agent, glance: LyingGlance) -> None:
    """A program that reads the log never meets a line that it cannot read."""
    await agent.create(glance.add(b"x" * MIB, name="new\nline \x1b[2J"))
    await agent.ask("GET", "/v1/nothing%0Ahere")
    assert await agent.stop() == 0
    lines = [json.loads(line) for line in agent.log.splitlines()]
    assert {line["event"] for line in lines} >= {"ready", "request", "published", "stopping"}
    assert all(line["level"] and line["timestamp"] for line in lines)


async def test_key_without_effect_is_named() -> None:
    """An operator who sets what this version does not do yet is told so."""
    settings = without_keystone(
        "http://127.0.0.1:9", log={"format": "json"}, glance={"mirrors": ["http://mirror.test"]}
    )
    async with agent_on(settings) as agent:
        (line,) = agent.lines("this key has no effect in this version")
    assert (line["key"], line["level"]) == ("glance.mirrors", "warning")


async def test_no_secret_is_ever_logged(glance: LyingGlance, tmp_path: Path) -> None:
    """Neither passwords nor tokens reach the log, however much of it there is."""
    tenant, stranger, bearer = "tenants-own-token", "strangers-token", "bearer-of-a-scheduler"
    digests = tmp_path / "tokens"
    digests.write_text(f"{hashlib.sha256(bearer.encode()).hexdigest()}\n")
    async with FakeKeystone(endpoints=[("here", glance.url)]) as keystone:
        settings: dict[str, dict[str, object]] = {
            "glance": {"retries": 1},
            "log": {"level": "debug"},
            "api": {"listen": "127.0.0.1:0", "token_file": str(digests)},
        }
        async with agent_on(settings, credentials(keystone)) as agent:
            await use(agent, glance, tenant, stranger)
            async with aiohttp.ClientSession() as session:
                for token, status in ((bearer, 200), (bearer[:-1], 401)):
                    headers = {"Authorization": f"Bearer {token}"}
                    async with session.get(f"{agent.address()}/v1/status", headers=headers) as got:
                        assert got.status == status
            assert await agent.stop() == 0
            log = agent.log
    assert keystone.issued
    assert "[debug" in log
    secrets = (PASSWORD, tenant, stranger, bearer[:-1], *keystone.issued)
    assert [secret for secret in secrets if secret in log] == []


async def use(agent: Agent, glance: LyingGlance, tenant: str, stranger: str) -> None:
    """Let a tenant have disks, and a stranger none, in all the ways that leave lines in the log."""
    image_id = glance.add(b"x" * MIB)
    glance.lie("data", lying_glance.cut(after=4))
    assert (await agent.create(image_id, token=tenant)).status == 201
    assert (await agent.create(image_id, token=tenant)).body["cache"] == "hit"
    glance.forbids.add(stranger)
    assert (await agent.create(image_id, token=stranger)).status == 403
    other = glance.add(b"y" * MIB)
    assert (await agent.ask("PUT", f"/v1/images/{other}", {})).status == 202
    glance.lie("show", lying_glance.status(401), lying_glance.status(401))
    assert (await agent.create(image_id, token=f"{stranger}-2")).status == 401
    answer = await agent.ask("GET", f"/v1/images/{image_id}", headers=bearing(f"{stranger} two"))
    assert answer.status == 401
    await agent.ask("GET", f"/v1/images/{image_id}?token={stranger}")


def credentials(keystone: FakeKeystone) -> dict[str, str]:
    """Give the environment by which the agent logs in."""
    return {
        "OS_AUTH_URL": keystone.url,
        "OS_USERNAME": "agent",
        "OS_PASSWORD": PASSWORD,
        "OS_PROJECT_NAME": "service",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
    }
