"""Images over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import CacheResult, Caller, ImageState, IngestPhase, Progress, User, UserKind
from tests.fakes.services import BASE, BASE_PATH, CACHED, IMAGE, INSTANCE

if TYPE_CHECKING:
    from cacheagent.metrics import Metrics
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

PATH = f"/v1/images/{IMAGE}"
ANYBODY = Caller(request_id="a")
ID = {"X-Request-ID": "a"}
AS_JSON = {
    "image_id": IMAGE,
    "name": "debian",
    "state": "ready",
    "base": {"base_id": BASE.base_id, "path": str(BASE_PATH), "format": "raw"},
    "size_bytes": 1000,
    "virtual_size_bytes": 4096,
    "allocated_bytes": 2048,
    "disk_format": "qcow2",
    "progress": None,
    "pinned": False,
    "in_use": True,
    "users": [{"kind": "disk", "instance_id": INSTANCE, "name": "root"}],
    "fetched_at": "2026-03-01T12:00:00Z",
    "last_used_at": "2026-03-01T12:00:00Z",
    "error": None,
}
COMING = replace(
    CACHED,
    state=ImageState.DOWNLOADING,
    base=None,
    base_path=None,
    users=(),
    progress=Progress(IngestPhase.DOWNLOADING, 400, 1000, 250.0),
)


async def test_list_gives_all_images(ask: Ask, services: FakeServices) -> None:
    """What is cached is told with its base, its sizes and its users."""
    answer = await ask("GET", "/v1/images", headers=ID)
    assert (answer.status, await answer.json()) == (200, {"images": [AS_JSON]})
    assert services.script.calls == [("list_images", ANYBODY)]


async def test_show_gives_one_image(ask: Ask, services: FakeServices) -> None:
    """One image looks as it does in the list."""
    answer = await ask("GET", PATH, headers=ID)
    assert (answer.status, await answer.json()) == (200, AS_JSON)
    assert services.script.calls == [("show", IMAGE, ANYBODY)]


async def test_an_image_on_its_way_tells_its_progress(ask: Ask, services: FakeServices) -> None:
    """Bytes done, in all, per second, and the seconds that are left, rounded up."""
    services.images.view = COMING
    shown = await (await ask("GET", PATH)).json()
    assert shown["progress"] == {
        "bytes_done": 400,
        "bytes_total": 1000,
        "bytes_per_second": 250,
        "eta_seconds": 3,
    }
    assert (shown["base"], shown["virtual_size_bytes"], shown["fetched_at"]) == (None, None, None)


@pytest.mark.parametrize(("total", "rate"), [(1000, 0.0), (0, 250.0)])
async def test_without_a_rate_or_a_total_there_is_no_guess(
    ask: Ask, services: FakeServices, total: int, rate: float
) -> None:
    """Nobody is told a time that nobody can know."""
    progress = Progress(IngestPhase.DOWNLOADING, 0, total, rate)
    services.images.view = replace(COMING, progress=progress)
    shown = await (await ask("GET", PATH)).json()
    assert shown["progress"]["eta_seconds"] is None


async def test_users_tell_what_names_them(ask: Ask, services: FakeServices) -> None:
    """A user that is no disk of ours has a path or a detail in place of a name."""
    services.images.view = replace(
        CACHED,
        users=(
            User(kind=UserKind.OVERLAY, path=Path("/srv/guest.qcow2")),
            User(kind=UserKind.LEASE, detail="until noon"),
            User(kind=UserKind.PIN),
        ),
    )
    assert (await (await ask("GET", PATH)).json())["users"] == [
        {"kind": "overlay", "path": "/srv/guest.qcow2"},
        {"kind": "lease", "detail": "until noon"},
        {"kind": "pin"},
    ]


async def test_text_that_is_no_text_does_not_hide_the_list(
    ask: Ask, services: FakeServices
) -> None:
    """A name with half a surrogate pair, or a path of any bytes, is shown as far as it can be."""
    services.images.view = replace(
        CACHED,
        image=replace(CACHED.image, name="broken \ud800"),
        users=(User(kind=UserKind.OVERLAY, path=Path("/srv/\udcff.qcow2")),),
    )
    shown = (await (await ask("GET", "/v1/images")).json())["images"][0]
    assert (shown["name"], shown["users"][0]["path"]) == ("broken ?", "/srv/?.qcow2")


async def test_a_failed_image_tells_why(ask: Ask, services: FakeServices) -> None:
    """Somebody who looks later learns what the waiters were told."""
    failed = replace(COMING, state=ImageState.FAILED, progress=None, error="digest mismatch")
    services.images.view = failed
    shown = await (await ask("GET", PATH)).json()
    assert (shown["state"], shown["error"]) == ("failed", "digest mismatch")


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_prefetch_needs_no_body(ask: Ask, services: FakeServices, body: bytes) -> None:
    """Without a word, an image is neither pinned nor waited for."""
    headers = ID | {"Content-Type": "application/json"}
    answer = await ask("PUT", PATH, data=body, headers=headers)
    assert (answer.status, await answer.json()) == (200, AS_JSON)
    assert services.script.calls == [("prefetch", IMAGE, ANYBODY, False, False)]


async def test_prefetch_answers_202_while_the_image_is_coming(
    ask: Ask, services: FakeServices
) -> None:
    """What is not ready is a 202 with its progress, and takes pin and wait along."""
    services.images.view = COMING
    answer = await ask("PUT", PATH, json={"pin": True, "wait": True}, headers=ID)
    assert answer.status == 202
    assert services.script.calls == [("prefetch", IMAGE, ANYBODY, True, True)]


@pytest.mark.parametrize("found", [CacheResult.HIT, CacheResult.MISS, CacheResult.JOINED])
async def test_prefetch_is_counted_by_what_it_found(
    ask: Ask, services: FakeServices, metrics: Metrics, found: CacheResult
) -> None:
    """A request that waited for somebody else's download neither hit nor missed."""
    services.images.found = found
    await ask("PUT", PATH, json={"wait": True})
    labels = {"operation": "image_prefetch", "result": str(found)}
    assert metrics.registry.get_sample_value("cacheagent_requests_total", labels) == 1


async def test_verify_tells_what_was_found(ask: Ask, services: FakeServices) -> None:
    """Both digests, and what became of the base; a damaged one is an answer, no failure."""
    answer = await ask("POST", f"{PATH}/verify", headers=ID)
    assert (answer.status, await answer.json()) == (
        200,
        {
            "image_id": IMAGE,
            "base_id": BASE.base_id,
            "outcome": "damaged",
            "algorithm": "sha512",
            "expected": "ab" * 64,
            "actual": "cd" * 64,
            "bytes_read": 2048,
            "seconds": 1.5,
            "error": "its sha512 is another one",
        },
    )
    assert services.script.calls == [("verify", IMAGE, ANYBODY)]


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("DELETE", PATH, "evict"),
        ("PUT", f"{PATH}/pin", "pin"),
        ("DELETE", f"{PATH}/pin", "unpin"),
    ],
)
async def test_evict_pin_and_unpin_answer_204(
    ask: Ask, services: FakeServices, method: str, path: str, call: str
) -> None:
    """What an operator does to an image leaves nothing to say."""
    answer = await ask(method, path, headers=ID)
    assert answer.status == 204
    assert services.script.calls == [(call, IMAGE, ANYBODY)]
