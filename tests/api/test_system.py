"""Status, health, metrics, the description and the status page."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

import openapi_spec_validator
import pytest

from cacheagent.api.app import create_metrics_app
from cacheagent.api.openapi import problems_of
from cacheagent.api.routes import ROUTES
from cacheagent.metrics import OPERATIONS
from tests.api.answers import document
from tests.api.conftest import asking
from tests.fakes.services import IMAGE

if TYPE_CHECKING:
    from cacheagent.metrics import Metrics
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices


async def test_status_gives_every_figure(ask: Ask) -> None:
    """Space, watermarks, counts, loops and Glance are told, each under its own name."""
    answer = await ask("GET", "/v1/status")
    assert await answer.json() == {
        "version": "1.2.3",
        "started_at": "2026-03-01T12:00:00Z",
        "uptime_seconds": 12.5,
        "ready": True,
        "stopping": False,
        "sandbox": "bubblewrap",
        "space": {
            "size_bytes": 1000,
            "used_bytes": 600,
            "free_bytes": 400,
            "cache_bytes": 300,
            "max_size_bytes": 500,
            "reserved_bytes": 20,
            "high_watermark_bytes": 850,
            "low_watermark_bytes": 750,
            "min_free_bytes": 50,
        },
        "eviction": {
            "doubts": [{"kind": "doubt", "path": "/scanned", "detail": "is empty"}],
            "unmet_bytes": 7,
        },
        "quarantine": {
            "bytes": 8192,
            "max_size_bytes": 1 << 20,
            "count": 3,
            "files": [
                {
                    "name": f"{IMAGE}.20260301T120000000000Z.backing-file",
                    "image_id": IMAGE,
                    "reason": "backing-file",
                    "detail": "it names a backing file",
                    "size_bytes": 4096,
                    "quarantined_at": "2026-03-01T12:00:00Z",
                }
            ],
        },
        "counts": {"images": 1, "disks": 1},
        "loops": {
            "pruner": {"last_run_at": "2026-03-01T12:00:00Z"},
            "scrubber": {"last_run_at": None},
        },
        "glance": {"reachable": True, "checked_at": "2026-03-01T12:00:00Z"},
    }


@pytest.mark.parametrize(
    ("ready", "stopping", "status"), [(True, False, 200), (False, False, 503), (True, True, 503)]
)
async def test_readiness_is_a_status(
    ask: Ask, services: FakeServices, *, ready: bool, stopping: bool, status: int
) -> None:
    """A daemon that has not begun, or is ending, is alive and not ready."""
    services.status.ready, services.status.stopping = ready, stopping
    answer = await ask("GET", "/readyz")
    assert (answer.status, await answer.json()) == (status, {"ready": ready, "stopping": stopping})
    assert await (await ask("GET", "/healthz")).json() == {"alive": True}


async def test_metrics_are_brought_up_to_date_first(ask: Ask, services: FakeServices) -> None:
    """A scrape sees gauges as of now, as Prometheus text."""
    answer = await ask("GET", "/metrics?collect=everything")
    assert services.script.calls == [("refresh_metrics",)]
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "cacheagent_requests_total" in await answer.text()


async def test_the_metrics_listener_knows_three_paths(
    services: FakeServices, metrics: Metrics
) -> None:
    """Whoever reaches the metrics reaches nothing else."""
    async with asking(create_metrics_app(services.status, metrics)) as ask:
        for path in ("/metrics", "/healthz", "/readyz"):
            assert (await ask("GET", path)).status == 200
    app = create_metrics_app(services.status, metrics)
    assert {resource.canonical for resource in app.router.resources()} == {
        "/metrics",
        "/healthz",
        "/readyz",
    }


async def test_the_description_is_served(ask: Ask) -> None:
    """What is served is the document that the tests hold the answers to."""
    answer = await ask("GET", "/openapi.json")
    assert await answer.json() == document()


def test_the_description_is_valid() -> None:
    """Tools for OpenAPI 3.1 can read the document."""
    openapi_spec_validator.validate(document())
    assert document()["openapi"].startswith("3.1")


def test_the_description_promises_no_id_that_glance_does_not_get() -> None:
    """Glance takes UUIDs as ids of requests, and the description says so of every route."""
    for methods in document()["paths"].values():
        for described in methods.values():
            headers = {each["name"]: each["description"] for each in described["parameters"]}
            assert headers["X-OpenStack-Request-ID"].endswith("Glance gets it if it is a UUID.")


def test_every_route_is_described_and_counted() -> None:
    """Operations are unique, a status is an answer or a problem, and the API's are counted."""
    described = [
        operation["operationId"]
        for methods in document()["paths"].values()
        for operation in methods.values()
    ]
    assert sorted(described) == sorted({route.operation for route in ROUTES})
    for route in ROUTES:
        assert not set(route.answers) & {error.status for error in problems_of(route)}
    under_v1 = {route.operation for route in ROUTES if route.path.startswith("/v1/")}
    assert under_v1 <= set(OPERATIONS)


async def test_the_page_may_load_nothing_but_itself(ask: Ask) -> None:
    """The policy of the page names its own script and style, and no other place."""
    answer = await ask("GET", "/")
    html = await answer.text()
    policy = dict(
        part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"] == _digest(html, "script")
    assert policy["style-src"] == _digest(html, "style")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"https?://|\bsrc=|@import|style=|\son\w+=", html)


async def test_the_page_inserts_values_as_text(ask: Ask) -> None:
    """An image cannot bring markup onto the page by its name."""
    html = await (await ask("GET", "/")).text()
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval", html)
    assert 'lang="en"' in html
    assert "prefers-color-scheme: dark" in html


async def test_the_page_names_only_fields_that_the_api_has(ask: Ask) -> None:
    """A field that is renamed in the API cannot be forgotten on the page."""
    html = await (await ask("GET", "/")).text()
    schemas: dict[str, Any] = document()["components"]["schemas"]
    holders = {"status": "Status", "space": "Space", "image": "Image", "disk": "Disk"}
    used = re.findall(r"\b(status|space|image|disk|progress)\.([a-z_]+)\b", html)
    assert {name for name, _ in used} == {*holders, "progress"}
    for holder, field in used:
        assert field in schemas[holders.get(holder, "Progress")]["properties"]


def _digest(html: str, element: str) -> str:
    found = re.search(f"<{element}>(.*?)</{element}>", html, re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
