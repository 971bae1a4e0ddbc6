"""What happens to every request: its id, its line in the log, its count, the guards."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog
from aiohttp import ClientSession, UnixConnector, web
from structlog.testing import capture_logs

from cacheagent import errors
from cacheagent.api.app import create_app
from cacheagent.api.guards import parse_digests
from cacheagent.model import CacheResult
from tests.fakes.services import DISK as VIEW
from tests.fakes.services import IMAGE, INSTANCE

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.metrics import Metrics
    from tests.api.conftest import Ask, Serve
    from tests.fakes.services import FakeServices

DISK = f"/v1/instances/{INSTANCE}/disks/root"
TOKEN = "s3cret"  # noqa: S105 - of this test alone
DIGESTS = frozenset({hashlib.sha256(b"other").digest(), hashlib.sha256(TOKEN.encode()).digest()})


@pytest.mark.parametrize(
    ("headers", "echoed"),
    [
        ({"X-OpenStack-Request-ID": "req-1"}, "req-1"),
        ({"X-Request-ID": "a.B:9_-"}, "a.B:9_-"),
        ({"X-OpenStack-Request-ID": "req-1", "X-Request-ID": "b"}, "req-1"),
        ({"X-OpenStack-Request-ID": "has blank", "X-Request-ID": "b"}, "b"),
    ],
)
async def test_a_sane_request_id_is_taken_over(
    ask: Ask, services: FakeServices, headers: dict[str, str], echoed: str
) -> None:
    """The caller's id goes to the service and comes back in both headers."""
    answer = await ask("GET", f"/v1/images/{IMAGE}", headers=headers)
    assert answer.headers["X-OpenStack-Request-ID"] == echoed
    assert answer.headers["X-Request-ID"] == echoed
    assert f"request_id='{echoed}'" in str(services.script.calls)


@pytest.mark.parametrize("given", [None, "", "a" * 129, "-x", "a\tb", "ü"])
async def test_any_other_request_gets_a_new_id(ask: Ask, given: str | None) -> None:
    """An id that could be misread in a log is replaced, and refused requests have one too."""
    headers = {} if given is None else {"X-Request-ID": given}
    answer = await ask("GET", "/v1/nowhere", headers=headers)
    assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["X-Request-ID"])


async def test_an_id_ends_with_its_request(ask: Ask, services: FakeServices) -> None:
    """Two requests on one connection do not share an id in the log."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        await ask("GET", DISK, headers={"X-Request-ID": "first"})
        await ask("GET", DISK, headers={"X-Request-ID": "second"})
    assert [line["request_id"] for line in logs] == ["first", "second"]
    assert len(services.script.calls) == 2


async def test_every_request_is_one_line_in_the_log(ask: Ask, services: FakeServices) -> None:
    """The line has what was asked, what came of it, and never a token."""
    services.script.problem = errors.DiskNotFoundError("gone")
    with capture_logs() as logs:
        await ask("GET", DISK, headers={"X-Auth-Token": TOKEN})
    (line,) = logs
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": DISK,
        "status": 404,
        "operation": "disk_show",
        "remote": "127.0.0.1",
        "result": "rejected",
        "problem": "disk-not-found",
        "detail": "gone",
    }


async def test_a_path_cannot_begin_a_line_of_its_own(ask: Ask) -> None:
    """A line break in a path stays percent-encoded in the log."""
    with capture_logs() as logs:
        await ask("GET", "/v1/images/a%0Ab")
    assert logs[0]["path"] == "/v1/images/a%0Ab"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/"])
async def test_somebody_looking_is_logged_as_debug(ask: Ask, path: str) -> None:
    """Probes and scrapes do not fill the log."""
    with capture_logs() as logs:
        await ask("GET", path)
    assert [line["log_level"] for line in logs] == ["debug"]


@pytest.mark.parametrize("cache", CacheResult)
async def test_creation_is_counted_by_what_it_found(
    ask: Ask, services: FakeServices, metrics: Metrics, cache: CacheResult
) -> None:
    """A disk that was made counts as what its base was; a blank one waits for none."""
    services.disks.view = replace(VIEW, disk=replace(VIEW.disk, cache=cache))
    await ask("PUT", DISK, json={"image_id": IMAGE})
    result = "hit" if cache is CacheResult.BLANK else str(cache)
    assert _count(metrics, "disk_create", result) == 1
    labels = {"operation": "disk_create", "result": result}
    name = "cacheagent_request_duration_seconds_count"
    assert metrics.registry.get_sample_value(name, labels) == 1


async def test_a_disk_that_was_there_is_a_hit(
    ask: Ask, services: FakeServices, metrics: Metrics
) -> None:
    """A repeated request counts as a hit, whatever the first one was."""
    services.disks.made = False
    await ask("PUT", DISK, json={"image_id": IMAGE})
    assert _count(metrics, "disk_create", "hit") == 1


@pytest.mark.parametrize(
    ("problem", "result"),
    [
        (errors.DiskNotFoundError("no"), "rejected"),
        (errors.GlanceUnavailableError("no"), "error"),
        (RuntimeError("no"), "error"),
    ],
)
async def test_failures_are_counted_apart(
    ask: Ask, services: FakeServices, metrics: Metrics, problem: Exception, result: str
) -> None:
    """What the caller could do better is rejected, the rest is an error."""
    services.script.problem = problem
    with capture_logs():
        if isinstance(problem, errors.GlanceUnavailableError):
            await ask("GET", f"/v1/images/{IMAGE}")
            assert _count(metrics, "image_show", result) == 1
        else:
            await ask("GET", DISK)
            assert _count(metrics, "disk_show", result) == 1


async def test_nothing_is_counted_that_is_no_operation(ask: Ask, metrics: Metrics) -> None:
    """Unknown paths, probes and scrapes make no series of their own."""
    before = await asyncio.to_thread(metrics.render)
    for path in ("/nowhere", "/healthz", "/metrics", "/"):
        await ask("GET", path)
    after = await asyncio.to_thread(metrics.render)
    series = b"cacheagent_requests_total{"
    assert after.count(series) == before.count(series) > 0
    assert b"healthz" not in after


async def test_a_caller_that_left_is_counted_as_rejected(
    ask: Ask, services: FakeServices, metrics: Metrics
) -> None:
    """A request that nobody waits for any more is no error of ours."""
    services.disks.hangs = True
    with capture_logs() as logs:
        task = asyncio.create_task(ask("PUT", DISK, json={"image_id": IMAGE}))
        await services.disks.entered.wait()
        task.cancel()
        await services.disks.cancelled.wait()
    assert _count(metrics, "disk_create", "rejected") == 1
    assert [line["status"] for line in logs] == [499]


async def test_head_is_answered_like_get_without_a_body(ask: Ask) -> None:
    """What can be got can be asked for by HEAD (RFC 9110, section 9.1)."""
    answer = await ask("HEAD", "/healthz")
    assert (answer.status, await answer.read()) == (200, b"")


async def test_a_stopping_daemon_takes_no_new_work(ask: Ask, services: FakeServices) -> None:
    """Requests to the API are told to come back later; health can still be asked for."""
    services.status.stopping = True
    answer = await ask("PUT", DISK, json={"image_id": IMAGE})
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (503, "urn:cacheagent:shutting-down")
    assert int(answer.headers["Retry-After"]) > 0
    assert services.script.calls == []
    assert (await ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize("headers", [{}, {"X-Auth-Token": ""}, {"X-Auth-Token": " "}])
async def test_where_a_token_is_required_none_is_a_401(
    serve: Serve, services: FakeServices, headers: dict[str, str]
) -> None:
    """Every path of the API wants a token then, and nothing else does."""
    async with serve(require_token=True) as ask:
        answer = await ask("GET", "/v1/status", headers=headers)
        problem = await answer.json(content_type=None)
        assert (answer.status, problem["type"]) == (401, "urn:cacheagent:unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Keystone"
        assert services.script.calls == []
        assert (await ask("GET", "/readyz")).status == 200
        given = await ask("GET", "/v1/status", headers={"X-Auth-Token": TOKEN})
        assert given.status == 200


@pytest.mark.parametrize("token", ["", " ", "two words", "tökn"])
async def test_a_token_that_can_be_none_is_a_401(
    ask: Ask, services: FakeServices, token: str
) -> None:
    """What could not be passed on is refused; an empty token makes nobody an operator."""
    answer = await ask("GET", DISK, headers={"X-Auth-Token": token})
    assert (answer.status, services.script.calls) == (401, [])


async def test_two_tokens_are_a_400(ask: Ask, services: FakeServices) -> None:
    """Nobody guesses which of two tokens was meant."""
    headers = [("X-Auth-Token", "a"), ("X-Auth-Token", "b")]
    answer = await ask("GET", DISK, headers=headers)
    assert (answer.status, services.script.calls) == (400, [])


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \u20ac"]
)
async def test_over_tcp_a_wrong_bearer_is_a_401(serve: Serve, given: str | None) -> None:
    """Without a token of the operator's there is nothing to see but health and the empty page."""
    headers = {} if given is None else {"Authorization": given}
    async with serve(bearers=lambda: DIGESTS) as ask:
        for path in ("/v1/status", "/metrics", "/openapi.json"):
            answer = await ask("GET", path, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for path in ("/", "/healthz", "/readyz"):
            assert (await ask("GET", path, headers=headers)).status == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_over_tcp_the_right_bearer_gets_in(serve: Serve, scheme: str) -> None:
    """Any token whose digest is in the file will do."""
    async with serve(bearers=lambda: DIGESTS) as ask:
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert (await ask("GET", "/v1/status", headers=headers)).status == 200


async def test_an_empty_token_file_lets_nobody_in(serve: Serve) -> None:
    """A file without tokens is not the same as no file."""
    async with serve(bearers=frozenset) as ask:
        assert (await ask("GET", "/v1/status")).status == 401


async def test_the_unix_socket_needs_no_bearer(
    services: FakeServices, metrics: Metrics, tmp_path: Path
) -> None:
    """The permissions of the socket say who may speak there."""
    app = create_app(services.bundle, metrics, bearers=lambda: DIGESTS)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        path = str(tmp_path / "api.sock")
        await web.UnixSite(runner, path).start()
        async with (
            ClientSession(connector=UnixConnector(path)) as session,
            session.get("http://localhost/v1/status") as answer,
        ):
            assert answer.status == 200
    finally:
        await runner.cleanup()


def test_a_token_file_holds_one_digest_a_line() -> None:
    """Comments and empty lines are skipped, upper case is the same digest."""
    digest = hashlib.sha256(b"a").hexdigest()
    assert parse_digests(f"# of ci\n\n  {digest.upper()}\r\n") == {bytes.fromhex(digest)}


@pytest.mark.parametrize("line", [TOKEN, "ab" * 31, "zz" * 32])
def test_a_line_that_is_no_digest_is_not_repeated(line: str) -> None:
    """A token that was put there by mistake does not end up in the log."""
    with pytest.raises(ValueError, match="line 2 is not") as caught:
        parse_digests(f"\n{line}\n")
    assert line not in str(caught.value)


def _count(metrics: Metrics, operation: str, result: str) -> float | None:
    labels = {"operation": operation, "result": result}
    return metrics.registry.get_sample_value("cacheagent_requests_total", labels)
