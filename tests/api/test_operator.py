"""Why an image stays, and a pass of eviction, over HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.model import Caller, ImageState
from tests.fakes.services import BASE, CACHED, IMAGE, INSTANCE, WHY

if TYPE_CHECKING:
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

ANYBODY = Caller(request_id="a")
ID = {"X-Request-ID": "a"}
USERS = [{"kind": "disk", "instance_id": INSTANCE, "name": "root"}]


async def test_why_gives_every_reason(ask: Ask, services: FakeServices) -> None:
    """Verdict, users, rules, times, the place in the order, and the bounds as they are now."""
    answer = await ask("GET", f"/v1/images/{IMAGE}/why", headers=ID)
    assert (answer.status, await answer.json()) == (
        200,
        {
            "image_id": IMAGE,
            "state": "ready",
            "base_id": BASE.base_id,
            "verdict": "stays",
            "reason": "high_watermark",
            "users": USERS,
            "rules": ["min_age"],
            "position": None,
            "unused_bases": 3,
            "pinned": False,
            "allocated_bytes": 2048,
            "fetched_at": "2026-03-01T12:00:00Z",
            "last_used_at": "2026-03-01T12:00:00Z",
            "free_at": "2026-03-01T12:00:00Z",
            "idle_at": None,
            "bounds": {
                "cache_bytes": 300,
                "max_size_bytes": None,
                "min_keep_bytes": 10,
                "size_bytes": 1000,
                "used_bytes": 600,
                "high_watermark_bytes": 550,
                "low_watermark_bytes": 500,
                "free_bytes": 400,
                "min_free_bytes": 50,
                "reserved_bytes": 20,
                "needed_bytes": 100,
            },
            "summary": "It stays, because it is in use: 1 disk.",
        },
    )
    assert services.script.calls == [("why", IMAGE, ANYBODY)]


async def test_why_says_that_there_is_no_base(ask: Ask, services: FakeServices) -> None:
    """An image that is coming has no verdict: there is nothing yet that could go."""
    coming = replace(CACHED, base=None, base_path=None, state=ImageState.QUEUED)
    services.operator.found = replace(WHY, view=coming, verdict=None)
    found = await (await ask("GET", f"/v1/images/{IMAGE}/why")).json()
    assert [found[key] for key in ("state", "base_id", "verdict", "position", "fetched_at")] == [
        "queued",
        *(None, None, None, None),
    ]


async def test_a_pass_tells_what_went_and_what_stays(ask: Ask, services: FakeServices) -> None:
    """In order, with reason, and what the last look found in use."""
    answer = await ask("POST", "/v1/prune", headers=ID)
    entry = {"base_id": BASE.base_id, "image_ids": [IMAGE], "bytes": 2048}
    noon = "2026-03-01T12:00:00Z"
    assert (answer.status, await answer.json()) == (
        200,
        {
            "dry_run": False,
            "needed_bytes": 5000,
            "freed_bytes": 2000,
            "unmet_bytes": 3000,
            "unmet_inodes": 1,
            "dropped": [
                {
                    "name": f"{IMAGE}.20260301T120000000000Z.backing-file",
                    "image_id": IMAGE,
                    "bytes": 4096,
                }
            ],
            "evicted": [{**entry, "reason": "max_size", "last_used_at": noon}],
            "stay": [
                {
                    **entry,
                    "reason": "min_free",
                    "users": [],
                    "rules": ["min_keep"],
                    "position": 2,
                    "last_used_at": noon,
                    "free_at": None,
                    "idle_at": noon,
                }
            ],
            "skipped": [{**entry, "reason": "max_size", "users": USERS}],
        },
    )
    assert services.script.calls == [("prune", ANYBODY, False, None)]


@pytest.mark.parametrize(
    ("body", "dry_run", "free_bytes"),
    [({}, False, None), ({"dry_run": True, "free_bytes": 1 << 40}, True, 1 << 40)],
)
async def test_a_pass_is_asked_for_by_its_body(
    ask: Ask, services: FakeServices, body: dict[str, object], dry_run: object, free_bytes: object
) -> None:
    """Only the plan, or so many bytes; without a word what the bounds ask for."""
    answer = await ask("POST", "/v1/prune", json=body, headers=ID)
    assert answer.status == 200
    assert services.script.calls == [("prune", ANYBODY, dry_run, free_bytes)]


@pytest.mark.parametrize(
    "body", [{"free_bytes": 0}, {"free_bytes": -1}, {"free_bytes": "1GiB"}, {"dry": True}]
)
async def test_a_pass_that_cannot_be_meant_is_refused(
    ask: Ask, services: FakeServices, body: dict[str, Any]
) -> None:
    """Nothing goes where it is not clear what was wished."""
    assert (await ask("POST", "/v1/prune", json=body)).status == 400
    assert services.script.calls == []
