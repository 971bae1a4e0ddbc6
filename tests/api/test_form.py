"""Requests that are no HTTP, or none that a client of ours sends: each ends in a clean refusal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession

from cacheagent.api.app import create_app, create_metrics_app
from cacheagent.api.form import MAX_HEADER
from cacheagent.api.server import MAX_FIELDS, MAX_LINE
from cacheagent.sync.rates import Rates
from tests.api.conftest import served
from tests.fakes.services import IMAGE, INSTANCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.metrics import Metrics
    from tests.api.conftest import Serve
    from tests.fakes.services import FakeServices

WAITS = 30
PLAIN = 400
"""The status of what aiohttp refuses by itself."""

I = INSTANCE.encode()  # noqa: E741 -- it stands in many lines below


def get(target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """Give a request whose connection closes behind its answer."""
    lines = [b"GET %b %b" % (target, version), b"Host: localhost", b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """Give a request for a pass of eviction."""
    lines = [b"POST /v1/prune HTTP/1.1", b"Host: localhost", b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.fixture
async def port(services: FakeServices, metrics: Metrics) -> AsyncIterator[int]:
    """Serve the API as the daemon does, and give its port."""
    async with served(create_app(services.bundle, metrics)) as url:
        yield int(url.rpartition(":")[2])


async def answered(port: int, sent: bytes) -> tuple[int, str]:
    """Send bytes; give the status and the media type of the answer, and demand that it ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(WAITS):
        head = await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    line, *fields = head.decode("latin-1").split("\r\n")
    types = [field.partition(": ")[2] for field in fields if field.startswith("Content-Type")]
    return int(line.split()[1]), types[0].partition(";")[0] if types else ""


PATHS = {
    "dots": get(b"/v1/instances/../.."),
    "dots, encoded": get(b"/v1/instances/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
    "dots, encoded twice": get(b"/v1/instances/%252e%252e%252f"),
    "dots in the middle": get(b"/v1/./instances"),
    "dots, back into the API": get(b"/v1/instances/" + I + b"/../../images"),
    "backslashes": get(b"/v1/instances/..%5c..%5cetc"),
    "a NUL, encoded": get(b"/v1/instances/%00"),
    "a NUL behind a name": get(b"/v1/instances/" + I + b"/disks/root%00.qcow2"),
    "UTF-8 that is too long": get(b"/v1/instances/%c0%ae%c0%ae%c0%af"),
    "half of a surrogate": get(b"/v1/instances/%ed%a0%80"),
    "no UTF-8": get(b"/v1/instances/%ff%fe"),
    "broken encoding": get(b"/v1/instances/%zz"),
    "a line feed": get(b"/v1/instances/" + I + b"%0d%0aX-A:%20b"),
    "two slashes": get(b"//v1/instances"),
    "two slashes within": get(b"/v1//instances"),
    "a slash at the end": get(b"/v1/instances/" + I + b"/"),
    "a parameter of the path": get(b"/v1/status;x=1"),
    "a long name": get(b"/v1/instances/" + b"a" * (MAX_LINE - 100)),
    "a UUID in upper case": get(b"/v1/instances/" + I.upper()),
    "a UUID in braces": get(b"/v1/instances/%7B" + I + b"%7D"),
    "a UUID as URN": get(b"/v1/instances/urn:uuid:" + I),
    "a UUID without hyphens": get(b"/v1/instances/" + I.replace(b"-", b"")),
    "a UUID with other digits": get(b"/v1/instances/" + b"%D9%A1" * 8 + I[8:]),
    "a name beyond the pattern": get(b"/v1/instances/" + I + b"/disks/Root"),
    "a name that is a file": get(b"/v1/instances/" + I + b"/disks/root.qcow2"),
    "a name of emoji": get(b"/v1/instances/" + I + b"/disks/%F0%9F%92%A9"),
    "a fragment": get(b"/v1/instances#all"),
    "a query": get(b"/v1/instances?a=%2e%2e%2f"),
    "absolute form": get(b"http://localhost/v1/instances"),
    "absolute form, elsewhere": get(b"http://cloud.example/v1/instances"),
    "a URL as path": get(b"/http://cloud.example/"),
    "HTTP/0.9": b"GET /v1/instances\r\n\r\n",
    "HTTP/0.9 by name": get(b"/v1/instances", version=b"HTTP/0.9"),
    "HTTP/2.0": get(b"/v1/instances", version=b"HTTP/2.0"),
    "OPTIONS": b"OPTIONS /v1/images HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "TRACE": b"TRACE /v1/images HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "PATCH": b"PATCH /v1/images HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "long header in all": get(b"/v1/status", *(b"X-%d: %b" % (n, b"a" * 8000) for n in range(5))),
    "an encoded body": post(b"Content-Encoding: gzip", b"Content-Length: 3", body=b"abc"),
    "a form": post(
        b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 1", body=b"a"
    ),
    "a form of parts": post(
        b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: 1", body=b"a"
    ),
    "two tokens": get(b"/v1/images", b"X-Auth-Token: a", b"X-Auth-Token: b"),
    "an id of an event that is none": get(b"/v1/events", b"Last-Event-ID: \xff"),
    "a token that is none": get(b"/v1/images", b"X-Auth-Token: a\xffb"),
}


@pytest.mark.parametrize("sent", PATHS.values(), ids=PATHS)
async def test_an_odd_request_gets_a_problem(
    port: int, services: FakeServices, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """What is odd and yet HTTP is refused in our words; no service hears of it."""
    status, kind = await answered(port, sent)
    assert 400 <= status < 500
    assert kind == "application/problem+json"
    assert services.script.calls == []
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


RAW = {
    "a NUL": get(b"/v1/instances/\x00"),
    "bytes": get(b"/v1/instances/\xff"),
    "authority form": get(b"cloud.example:443"),
    "an asterisk": get(b"*"),
    "a host without its end": get(b"http://[::1/"),
    "no host": get(b"http:///v1/status"),
    "a port that is none": get(b"http://a:99999999/"),
    "a long line": get(b"/v1/instances/" + b"a" * (MAX_LINE + 1)),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "line feeds alone": b"GET /v1/status HTTP/1.1\nHost: a\n\n",
    "a method in lower case": b"get /v1/status HTTP/1.1\r\nHost: a\r\n\r\n",
    "no Host": b"GET /v1/status HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/v1/status", b"Host: cloud.example"),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
    "two equal lengths": post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
    "a length and chunks": post(
        b"Content-Length: 2", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "chunks and a length": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 2", body=b"0\r\n\r\n"
    ),
    "another encoding": post(b"Transfer-Encoding: xchunked"),
    "chunks that are not the last": post(b"Transfer-Encoding: chunked, identity"),
    "chunks, hidden": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "a length with a sign": post(b"Content-Length: +2", body=b"{}"),
    "a length below zero": post(b"Content-Length: -2", body=b"{}"),
    "a length with an underscore": post(b"Content-Length: 1_0", body=b"{}"),
    "a length of other digits": post("Content-Length: \u0662".encode(), body=b"{}"),
    "a length that is too long": post(b"Content-Length: " + b"9" * 30),
    "a chunk that is too long": post(b"Transfer-Encoding: chunked", body=b"f" * 18 + b"\r\n{}\r\n"),
    "a chunk that is no number": post(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n"),
    "a folded header": get(b"/v1/status", b"X-A: b\r\n c"),
    "a space before the colon": get(b"/v1/status", b"X-Auth-Token : a"),
    "a name of two words": get(b"/v1/status", b"X A: b"),
    "no name": get(b"/v1/status", b": b"),
    "a NUL in a header": get(b"/v1/status", b"X-A: a\x00b"),
    "too many fields": get(b"/v1/status", *(b"X-%d: a" % n for n in range(MAX_FIELDS))),
    "a field that is too long": get(b"/v1/status", b"X-A: " + b"a" * (MAX_LINE + 1)),
}


@pytest.mark.parametrize("sent", RAW.values(), ids=RAW)
async def test_what_is_no_http_is_refused_and_the_connection_closed(
    port: int, services: FakeServices, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """What could mean two things means nothing here, and what follows it is not read."""
    status, _ = await answered(port, sent + STATUS)
    assert status == PLAIN
    assert services.script.calls == []
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


STATUS = get(b"/v1/images")


@pytest.mark.parametrize(
    "sent",
    [
        get(b"/v1/status"),
        get(b"/none"),
        get(b"/v1/events"),
        post(b"A: b"),
        RAW["TLS"],
        RAW["no Host"],
    ],
    ids=["an answer", "a problem", "a stream", "a refusal", "no HTTP", "half of HTTP"],
)
async def test_no_answer_tells_versions(port: int, sent: bytes) -> None:
    """A stranger is not told which flaws to try."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert [line for line in head.split(b"\r\n") if line.startswith(b"Server")] == [
        b"Server: cacheagent"
    ]


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_an_ordinary_request_is_served(port: int, version: bytes) -> None:
    """What is refused above is refused for what is odd about it."""
    assert await answered(port, get(b"/v1/images", version=version)) == (200, "application/json")


async def test_a_header_up_to_the_limit_is_read(port: int) -> None:
    """The limits themselves are still allowed."""
    fields = [b"X-%02d: %b" % (n, b"a" * 500) for n in range(MAX_FIELDS - 2)]
    assert sum(map(len, fields)) < MAX_HEADER
    assert (await answered(port, get(b"/v1/images", *fields)))[0] == 200


@pytest.mark.parametrize(
    "path", [b"/%761/images", b"/v1%2fimages", b"/%2fv1/images", b"/v1/images/" + IMAGE.encode()]
)
async def test_no_spelling_leads_past_the_guards(
    services: FakeServices, metrics: Metrics, path: bytes
) -> None:
    """However a path is written, it is either not there or asks for the token."""
    digests = frozenset({hashlib.sha256(b"a").digest()})
    app = create_app(services.bundle, metrics, bearers=lambda: digests)
    async with served(app) as url:
        status, _ = await answered(int(url.rpartition(":")[2]), get(path))
    assert status == 401
    assert services.script.calls == []


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Host": "cloud.example"}, "Host"),
        ({"Host": "cloud.example:9876"}, "Host"),
        ({"Host": "127.0.0.1.cloud.example"}, "Host"),
        ({"Host": "localhost.cloud.example"}, "Host"),
        ({"Host": "127.1"}, "Host"),
        ({"Host": "[::1"}, "Host"),
        ({"Origin": "https://cloud.example"}, "Origin"),
        ({"Origin": "null"}, "Origin"),
        ({"Origin": "http://127.0.0.1"}, "Origin"),
        ({"Origin": "http://localhost:1"}, "Origin"),
    ],
)
async def test_a_page_of_another_site_is_kept_out(
    serve: Serve, services: FakeServices, headers: dict[str, str], field: str
) -> None:
    """Neither a page elsewhere nor a name that was rebound to loopback reaches the API."""
    async with serve() as ask:
        answer = await ask("POST", "/v1/prune", headers=headers)
        problem = json.loads(await answer.read())
    assert answer.status == 400
    assert [error["field"] for error in problem["errors"]] == [field]
    assert services.script.calls == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1:80", "localhost", "LOCALHOST:1", "[::1]:9876", "10.0.0.1"]
)
async def test_this_machine_may_be_named_in_many_ways(serve: Serve, host: str) -> None:
    """Addresses and localhost are nobody else's; a page of ours may ask for more."""
    async with serve() as ask:
        assert (await ask("GET", "/v1/status", headers={"Host": host})).status == 200
        own = {"Host": host, "Origin": f"http://{host}"}
        assert (await ask("GET", "/v1/status", headers=own)).status == 200


async def test_who_asks_too_often_is_told_when_to_come_again(serve: Serve) -> None:
    """Behind its burst a peer gets 429; whether the daemon lives is told at any rate."""
    async with serve(rates=Rates(rate=0.001, burst=3)) as ask:
        assert [(await ask("GET", "/v1/images")).status for _ in range(3)] == [200] * 3
        refused = await ask("GET", "/v1/images")
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 0
        for path in ("/healthz", "/readyz"):
            assert (await ask("GET", path)).status == 200
        # Neither a page that is not there nor a wrong method is a way to ask on.
        assert (await ask("GET", "/")).status == 429


async def test_metrics_are_told_however_often_somebody_asks_the_api(
    services: FakeServices, metrics: Metrics
) -> None:
    """The listener of the metrics has bounds of its own."""
    api = create_app(services.bundle, metrics, rates=Rates(rate=0.001, burst=1))
    watching = create_metrics_app(services.status, metrics)
    async with served(api) as flooded, served(watching) as watched, ClientSession() as session:
        for expected in (200, 429, 429):
            async with session.get(f"{flooded}/v1/status") as answer:
                assert answer.status == expected
        for path in ("/metrics", "/healthz"):
            async with session.get(f"{watched}{path}") as answer:
                assert answer.status == 200


async def test_the_page_may_not_be_framed_nor_guessed_at(serve: Serve) -> None:
    """The status page loads nothing from elsewhere, and nobody else shows it as his own."""
    async with serve() as ask:
        headers = (await ask("GET", "/")).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
