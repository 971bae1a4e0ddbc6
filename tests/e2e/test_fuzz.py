"""A real daemon, asked for whatever its own description allows and for much that it does not.

Requests are made from ``/openapi.json``, which comes from the running daemon. Half of their names
are those of things that exist, so that they get behind the parsers. ``CACHEAGENT_FUZZ_EXAMPLES``
says how many requests there are for each operation, some sixty at least: the test demands that each
gives something. On a slow machine there are fewer of them, and not more time.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks as rules

from cacheagent.api.routes import ROUTES
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.images import real_images

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.fakes.lying_glance import LyingGlance

EXAMPLES = int(os.environ.get("CACHEAGENT_FUZZ_EXAMPLES", "200"))
CREATE = "PUT /v1/instances/{instance_id}/disks/{name}"
STREAM = "GET /v1/events"
"""What is answered without an end."""

SECONDS = 60.0
"""For one answer."""

PATIENCE = 20.0
"""Seconds for all requests of one operation."""

OK = 200
REFUSED = 400
INTERNAL = 500

CHECKS = [
    rules.status_code_conformance,
    rules.content_type_conformance,
    rules.response_headers_conformance,
    rules.response_schema_conformance,
]

OF_WRONG_ONES = [rules.negative_data_rejection, rules.unsupported_method]

FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,  # a slow machine is no fault of the daemon
    database=None,  # what was found once becomes a test of its own
    derandomize=True,
    # Requests that wait for a download, and descriptions with long patterns, take their time.
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def names(glance: LyingGlance) -> dict[str, list[str]]:
    """Give, for each part of a path and the header of the token, what stands for something."""
    disk = real_images()["disk-v2-compressed.qcow2"].path.read_bytes()
    images = [
        glance.add(b"a raw disk" * 4096, disk_format="raw"),
        glance.add(disk, disk_format="qcow2"),
        glance.add(disk, disk_format="raw"),
        glance.add(b"x" * 512, disk_format="raw", os_hash_value="00" * 64),
        glance.add(b"y" * 512, disk_format="raw", status="queued"),
        glance.add(b"z" * 512, disk_format="raw", min_disk=1 << 40),
        "00000000-0000-4000-8000-000000000000",
    ]
    return {
        "image_id": [str(image) for image in images],
        "instance_id": [f"1457a9ce-0000-4000-8000-00000000000{n}" for n in range(3)],
        "name": ["root", "data", "swap"],
        "X-Auth-Token": ["of-a-tenant", "of-nobody"],
    }


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on that image service, which is asked as fast as it answers."""
    glance.forbids.add("of-nobody")
    api = {"listen": "127.0.0.1:0"}
    options = without_keystone(glance.url, api=api, glance={"retries": 0, "stall_timeout": 5})
    async with agent_on(options) as running:
        yield running


def wishes(names: Mapping[str, Sequence[str]]) -> st.SearchStrategy[dict[str, object]]:
    """Give bodies for disks that a scheduler could mean, small and much too large."""
    sizes = st.sampled_from([1, 512, 1 << 20, 1 << 30, 1 << 45, 1 << 55, (1 << 63) - 512])
    common = {"size_bytes": sizes, "format": st.sampled_from(["qcow2", "raw"])}
    mode = st.sampled_from(["overlay", "full", None])
    image = st.sampled_from(names["image_id"])
    systems = st.sampled_from(["ext4", "xfs", "vfat", "swap"])
    return st.one_of(
        st.fixed_dictionaries({"image_id": image}, optional={**common, "mode": mode}),
        st.fixed_dictionaries(common, optional={"filesystem": systems}),
    )


def familiar(case: Any, names: Mapping[str, Sequence[str]], draw: Any) -> None:  # noqa: ANN401 -- of two libraries
    """Put names of what exists into half of the places that a request has for one."""
    parts = [part for part in (case.path_parameters, case.headers, case.body) if part]
    for part in parts:
        for name in names:
            if isinstance(part, dict) and name in part and draw(st.booleans()):
                part[name] = draw(st.sampled_from(names[name]))
    if case.operation.label == CREATE and draw(st.booleans()):
        case.body = draw(wishes(names))


def fuzz(url: str, names: Mapping[str, Sequence[str]]) -> dict[str, set[int]]:
    """Ask for each operation many times; give the statuses that each was answered with."""
    # Loaded from its URL, it would leave out the route that it came by.
    described = requests.get(f"{url}/openapi.json", timeout=SECONDS).json()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=url)
    statuses: dict[str, set[int]] = {}
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    # What removes goes last: the others are to find something.
    for operation in sorted(operations, key=lambda each: bool(each.method.upper() == "DELETE")):
        label = operation.definition.raw["operationId"]
        statuses[label] = ask_for(operation, names)
    return statuses


def ask_for(operation: Any, names: Mapping[str, Sequence[str]]) -> set[int]:  # noqa: ANN401 -- of schemathesis
    """Send requests to one operation, as described and otherwise, and hold the answers to it."""
    described = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    seen: set[int] = set()
    until = time.monotonic() + PATIENCE

    @FUZZ
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        if time.monotonic() > until:
            return
        right = data.draw(st.booleans())
        case = data.draw(described if right else wrong)
        if right:
            familiar(case, names, data.draw)
        if operation.label == STREAM and follows(case, session):
            seen.add(200)
            return
        response = case.call(session=session, timeout=SECONDS)
        seen.add(response.status_code)
        assert response.status_code != INTERNAL, response.text
        case.validate_response(response, checks=CHECKS if right else [*CHECKS, *OF_WRONG_ONES])

    with requests.Session() as session:
        ask()
    return seen


def follows(case: Any, session: requests.Session) -> bool:  # noqa: ANN401 -- of schemathesis
    """Tell whether a stream begins, as it is described; and leave it."""
    sent = case.as_transport_kwargs()
    with session.request(**sent, stream=True, timeout=SECONDS) as response:
        if response.status_code != OK:
            return False
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Request-ID"]
        return True


@pytest.mark.timeout(600)
async def test_every_answer_is_one_of_the_description(
    agent: Agent, names: dict[str, list[str]]
) -> None:
    """Whatever is asked, the answer is described, with its type, its headers and its members.

    No route is left out, and each is asked for something that it gives.
    """
    statuses = await asyncio.to_thread(fuzz, agent.address(), names)
    described = {route.operation for route in ROUTES}
    assert statuses.keys() == described
    assert {name for name in described if min(statuses[name]) >= REFUSED} == set()
    assert statuses["disk_create"] >= {200, 201, 400}
    assert statuses["events"] >= {200, 400}
    assert (await agent.ask("GET", "/readyz")).status == 200
    assert agent.lines("unexpected error") == []
