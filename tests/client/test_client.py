"""What a scheduler gets from the library, with asyncio and without."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.client import AsyncClient, Client, sse
from cacheagent.client.calls import TRIES, Address
from cacheagent.errors import DaemonUnreachableError, RequestFailedError
from tests.fakes.daemon import BROKEN, CACHED, COMING, FORBIDDEN, INSTANCE, MISSING, SIZE, TWIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.fakes.daemon import FakeDaemon

    Do = Callable[..., Any]
    Follow = Callable[..., list[Any]]


def _async_do(address: str, **options: str | float) -> Do:
    kind: Any = AsyncClient

    def do(method: str, *args: object, **kwargs: object) -> object:
        async def run() -> object:
            async with kind(address, **options) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    return do


def _sync_do(address: str, **options: str | float) -> Do:
    kind: Any = Client
    client = kind(address, **options)
    return lambda method, *args, **kwargs: getattr(client, method)(*args, **kwargs)


MAKERS = {"async": _async_do, "sync": _sync_do}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Do:
    """Give one kind of client after the other, behind one way to call it."""
    return MAKERS[request.param]


@pytest.fixture
def do(make: Do, address: str) -> Do:
    """Call a method of a client of the daemon."""
    return make(address)  # type: ignore[no-any-return]  # both kinds give a function


def test_both_clients_have_the_same_methods() -> None:
    """Whoever changes from one to the other changes no call."""

    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name != "close"
        }

    assert methods(AsyncClient) == methods(Client)


def test_a_disk_from_its_creation_to_its_end(do: Do, daemon: FakeDaemon) -> None:
    """The path of a new disk is in the answer; it can be looked at, listed and removed."""
    disk = do("create_disk", INSTANCE, "root", image_id=CACHED, size_bytes=5 << 30)
    assert disk["path"] == f"/srv/instances/{INSTANCE}/root.qcow2"
    assert disk["virtual_size_bytes"] == 5 << 30
    assert do("disk", INSTANCE, "root") == disk
    assert do("instance", INSTANCE)["disks"] == [disk]
    assert do("instances") == [{"instance_id": INSTANCE, "disks": [disk]}]
    do("delete_disk", INSTANCE, "root")
    assert daemon.disks == {INSTANCE: {}}
    do("delete_instance", INSTANCE)
    assert daemon.disks == {}


def test_only_what_is_wished_is_sent(do: Do, daemon: FakeDaemon) -> None:
    """What is left out, or None, is the daemon's to decide."""
    do("create_disk", INSTANCE, "swap", size_bytes=1 << 30, filesystem="swap", label=None)
    do("create_disk", INSTANCE, "root", image_id=CACHED, format="raw", mode="full")
    assert [body for _, _, _, body in daemon.requests] == [
        {"size_bytes": 1 << 30, "filesystem": "swap"},
        {"image_id": CACHED, "format": "raw", "mode": "full"},
    ]


def test_not_waiting_gives_a_pending_disk(do: Do, daemon: FakeDaemon) -> None:
    """A scheduler that does other things meanwhile asks again later."""
    disk = do("create_disk", INSTANCE, "root", image_id=CACHED, wait=False)
    assert disk["state"] == "pending"
    assert daemon.requests[0][2]["Prefer"] == "respond-async"


def test_images_are_pulled_listed_and_evicted(do: Do, daemon: FakeDaemon) -> None:
    """An operator's program steers the cache."""
    assert do("pull", COMING)["state"] == "queued"
    assert do("pull", TWIN, pin=True, wait=True)["pinned"]
    assert do("image", COMING)["progress"]["bytes_total"] == SIZE
    assert {image["image_id"] for image in do("images")} == {CACHED, TWIN, COMING}
    do("pin", CACHED)
    assert daemon.images[CACHED]["pinned"]
    with pytest.raises(RequestFailedError):
        do("evict", CACHED)
    do("unpin", CACHED)
    do("evict", CACHED)
    assert CACHED not in daemon.images


def test_a_base_is_verified_and_explained(do: Do) -> None:
    """A program learns what a base is worth, and what becomes of it."""
    assert do("verify", CACHED)["outcome"] == "verified"
    assert do("why", CACHED)["verdict"] == "stays"
    with pytest.raises(RequestFailedError):
        do("verify", MISSING)


def test_a_pass_is_planned_and_made(do: Do, daemon: FakeDaemon) -> None:
    """A dry run changes nothing; what is wished is sent."""
    planned = do("prune", dry_run=True, free_bytes=1 << 30)
    assert [each["image_ids"] for each in planned["evicted"]] == [[CACHED]]
    assert CACHED in daemon.images
    assert do("prune")["evicted"] == planned["evicted"]
    assert CACHED not in daemon.images
    assert [body for _, _, _, body in daemon.requests] == [
        {"dry_run": True, "free_bytes": 1 << 30},
        {"dry_run": False, "free_bytes": None},
    ]


@pytest.fixture
def follow(make: Do, address: str, monkeypatch: pytest.MonkeyPatch) -> Follow:
    """Follow the events, without a pause behind a cut, and note what ends them."""
    monkeypatch.setattr(sse, "RECONNECT_SECONDS", 0)

    async def following(after: str | None, seen: list[Any]) -> None:
        async with AsyncClient(address) as client:
            async for event in client.events(after):
                seen.append(event)  # noqa: PERF401 -- what came before the error counts

    def collect(after: str | None, seen: list[Any]) -> None:
        if make is _async_do:
            asyncio.run(following(after, seen))
        seen.extend(Client(address).events(after))

    def run(after: str | None = None) -> list[Any]:
        seen: list[Any] = []
        with pytest.raises(RequestFailedError) as ended:
            collect(after, seen)
        return [*seen, ended.value]

    return run


def test_events_go_on_behind_a_cut(follow: Follow, daemon: FakeDaemon) -> None:
    """Nothing is missed and nothing comes twice, until the daemon does not answer any more."""
    daemon.events = [("image.progress", '{"at": 1}'), ("prune", '{"at": 2}')]
    *events, ended = follow()
    assert events == [
        {"id": "0-1", "event": "image.progress", "data": {"at": 1}},
        {"id": "0-2", "event": "prune", "data": {"at": 2}},
    ]
    assert ended.problem["type"] == "urn:cacheagent:shutting-down"
    asked = [headers.get("Last-Event-ID") for _, _, headers, _ in daemon.requests]
    assert asked == [None, "0-1", "0-2"]
    assert {headers["Accept"] for _, _, headers, _ in daemon.requests} == {"text/event-stream"}


def test_events_begin_where_a_program_left_them(follow: Follow, daemon: FakeDaemon) -> None:
    """Whoever keeps the id of the last event goes on there after a restart of its own."""
    daemon.events = [("prune", '{"at": 1}'), ("prune", '{"at": 2}')]
    assert [event["id"] for event in follow("0-1")[:-1]] == ["0-2"]


def test_a_problem_ends_the_events(follow: Follow, daemon: FakeDaemon) -> None:
    """A token that has expired meanwhile is told as it would be at the beginning."""
    problem = '{"type": "urn:cacheagent:unauthenticated", "status": 401, "detail": "expired"}'
    daemon.events = [("prune", '{"at": 1}'), ("problem", problem)]
    *events, ended = follow()
    assert len(events) == 1
    assert (ended.status, str(ended)) == (401, "expired")


def test_without_a_daemon_there_are_no_events(make: Do) -> None:
    """Who follows learns at once that nobody answers, or that something else does."""
    kind = AsyncClient if make is _async_do else Client
    with pytest.raises(DaemonUnreachableError):
        _first(kind("/nonexistent/api.sock"))


def test_an_answer_that_is_no_stream_is_no_daemon(
    make: Do, stranger: tuple[str, list[bytes]]
) -> None:
    """Something else may sit at the address, and answer in JSON."""
    address, answers = stranger
    answers.append(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    kind = AsyncClient if make is _async_do else Client
    with pytest.raises(DaemonUnreachableError, match="has no events to tell"):
        _first(kind(address))


def _first(client: AsyncClient | Client) -> object:
    """Give the first event."""
    if isinstance(client, Client):
        return next(client.events())

    async def first() -> object:
        async with client:
            return await anext(client.events())

    return asyncio.run(first())


def test_the_status_is_told(do: Do) -> None:
    """A program sees how much room there is."""
    assert do("status")["space"]["free_bytes"] == 40 << 30


@pytest.mark.parametrize(
    ("image_id", "status", "word"),
    [
        (FORBIDDEN, 403, "image-forbidden"),
        (MISSING, 404, "image-not-found"),
        (BROKEN, 503, "glance-unavailable"),
    ],
)
def test_a_problem_is_raised_with_all_that_it_says(
    do: Do, image_id: str, status: int, word: str
) -> None:
    """The caller tells by status and type what happened, and by the text what to log."""
    with pytest.raises(RequestFailedError) as caught:
        do("create_disk", INSTANCE, "root", image_id=image_id)
    assert caught.value.status == status
    assert caught.value.problem["type"] == f"urn:cacheagent:{word}"
    assert str(caught.value) == caught.value.problem["detail"]


def test_when_to_try_again_is_told(do: Do) -> None:
    """The library does not try again by itself: it says when the daemon would like it."""
    with pytest.raises(RequestFailedError) as caught:
        do("pull", BROKEN, wait=True)
    assert caught.value.problem["retry_after"] == 5


def test_names_stay_names(do: Do, daemon: FakeDaemon) -> None:
    """Neither slashes nor dots in a name lead to another path."""
    with pytest.raises(RequestFailedError):
        do("disk", "../..", "a/b?c#d")
    assert daemon.requests[0][1] == "/v1/instances/%2E%2E%2F%2E%2E/disks/a%2Fb%3Fc%23d"


def test_tokens_and_request_ids_are_sent(make: Do, address: str, daemon: FakeDaemon) -> None:
    """The daemon learns on whose behalf it works, and under which id to log it."""
    make(address, token="t1", bearer="b1", request_id="req-1")("images")  # noqa: S106 -- an example
    headers = daemon.requests[0][2]
    assert headers["X-Auth-Token"] == "t1"
    assert headers["Authorization"] == "Bearer b1"
    assert headers["X-OpenStack-Request-ID"] == "req-1"


def test_one_client_asks_for_many_tenants(address: str, daemon: FakeDaemon) -> None:
    """Each request bears the token of its tenant, and the bearer token of the host."""

    async def run() -> None:
        async with AsyncClient(address, bearer="b") as client:
            for token in ("one", "two"):
                await client.on_behalf_of(token=token, request_id=f"req-{token}").images()

    asyncio.run(run())
    for token in ("one", "two"):
        Client(address, bearer="b").on_behalf_of(token=token).images()
    assert [headers["X-Auth-Token"] for _, _, headers, _ in daemon.requests] == ["one", "two"] * 2
    assert {headers["Authorization"] for _, _, headers, _ in daemon.requests} == {"Bearer b"}


@pytest.mark.parametrize("address", ["/nonexistent/api.sock", "http://127.0.0.1:1"])
def test_no_daemon_is_its_own_error(make: Do, address: str) -> None:
    """The caller can tell a daemon that is away from one that refuses."""
    with pytest.raises(DaemonUnreachableError, match=f"no daemon answers at {address}"):
        make(address)("status")


@pytest.mark.parametrize("address", ["127.0.0.1:9876", "[::1]:9876", "host:9876"])
def test_an_address_of_tcp_without_its_scheme_is_told(make: Do, address: str) -> None:
    """Who meant TCP and named a socket learns how to write it."""
    with pytest.raises(DaemonUnreachableError, match=re.escape(f"for TCP: http://{address})")):
        make(address)("status")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection with the bytes in the list, and close it."""
    answers: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stranger.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            listener.close()  # whoever comes again finds nobody
            with connection:
                connection.recv(65536)
                connection.sendall(answers[0])

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(tmp_path / "stranger.sock"), answers
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
    ],
)
def test_what_is_no_answer_of_a_daemon_counts_as_none(
    make: Do, stranger: tuple[str, list[bytes]], answer: bytes
) -> None:
    """A daemon that dies in the middle, or something else on its address, is out of reach."""
    address, answers = stranger
    answers.append(answer)
    with pytest.raises(DaemonUnreachableError, match=address):
        make(address)("status")


def test_a_time_limit_ends_the_waiting(make: Do, address: str) -> None:
    """A caller with a deadline is not held by a download."""
    with pytest.raises(DaemonUnreachableError):
        make(address, seconds=0.05)("pull", COMING, wait=True)


def test_the_address_is_found_as_the_programs_of_the_host_find_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The argument is first, then the variable, then the default."""
    monkeypatch.setenv("CACHEAGENT_SOCKET", "/run/other.sock")
    assert Address.find("/run/mine.sock").path == "/run/mine.sock"
    assert Address.find(None).path == "/run/other.sock"
    monkeypatch.delenv("CACHEAGENT_SOCKET")
    assert Address.find(None).path == "/run/cacheagent/api.sock"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://127.0.0.1:9876", "http://127.0.0.1:9876"),
        ("https://[::1]:9876/", "https://[::1]:9876"),
        ("https://host.example.org", "https://host.example.org:443"),
        ("/run/x.sock", "http://localhost"),
    ],
)
def test_a_url_goes_over_tcp(text: str, origin: str) -> None:
    """The same client speaks to a daemon of another host."""
    assert Address.find(text).origin == origin


def test_a_url_that_cannot_be_is_refused() -> None:
    """A typing error in the address is told as such."""
    with pytest.raises(DaemonUnreachableError, match="is no address of a daemon"):
        Client("http://host:port")


async def test_many_requests_run_at_once(address: str, daemon: FakeDaemon) -> None:
    """Requests that wait for a download hold up no other: there is no limit on connections."""
    async with AsyncClient(address) as client:
        waiting: list[Awaitable[object]] = [
            asyncio.ensure_future(client.create_disk(INSTANCE, f"d{i}", image_id=COMING))
            for i in range(150)
        ]
        while len(daemon.requests) < 150 or daemon.images[COMING]["state"] != "ready":
            if len(daemon.requests) >= 150:
                await client.image(COMING)
            await asyncio.sleep(0.001)
        await asyncio.gather(*waiting)
    assert len(daemon.disks[INSTANCE]) == 150


def test_who_asks_too_often_is_served_a_little_later(do: Do, daemon: FakeDaemon) -> None:
    """What the daemon did not begin with is asked for again, with the same body."""
    daemon.too_many = 3
    disk = do("create_disk", INSTANCE, "root", image_id=CACHED)
    assert disk["image_id"] == CACHED
    bodies = [body for *_, body in daemon.requests]
    assert bodies == [{"image_id": CACHED}] * 4


def test_nobody_asks_for_ever(do: Do, daemon: FakeDaemon) -> None:
    """A daemon that goes on to refuse is believed in the end."""
    daemon.too_many = 100
    with pytest.raises(RequestFailedError) as refused:
        do("status")
    assert refused.value.problem["type"] == "urn:cacheagent:too-many-requests"
    assert len(daemon.requests) == TRIES
