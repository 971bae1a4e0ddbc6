"""Every fault of Glance and the network: success or the right problem, and one for the crowd."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.errors import GlanceUnavailableError, ProblemError
from cacheagent.model import CacheResult, Caller
from tests.fakes import lying_glance
from tests.fakes.lying_glance import Call, Lie
from tests.needs import require_programs
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import ImageId
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

MIB = 1 << 20
DATA = os.urandom(2 * MIB)
OTHER = os.urandom(2 * MIB)
WRONG = bytes([DATA[0] ^ 1]) + DATA[1:]
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- the fake takes any
ANOTHER = Caller(token="another")  # noqa: S106 -- and this
CROWD = 10
TTL = 5
RETRIES = 2
"""Failures in a row that are forgiven: a fault for ever is asked for three times."""

HUGE = "a" * 100_000


@dataclass(frozen=True, slots=True)
class Fault:
    """What a server does, once or each time, and how the request for the image ends.

    ``word`` is that of the problem; None = success.
    """

    name: str
    call: Call
    lies: tuple[Lie, ...]
    word: str | None
    for_ever: bool = False

    def arrange(self, service: LyingGlance) -> None:
        """Have the server do so from now on."""
        service.lie(self.call, *self.lies)
        if self.for_ever:
            service.always(self.call, self.lies[-1])


def once(name: str, call: Call, *lies: Lie) -> Fault:
    """Name a fault that passes."""
    return Fault(name, call, lies, None)


def ever(name: str, call: Call, word: str | None, *lies: Lie) -> Fault:
    """Name a fault that stays."""
    return Fault(name, call, lies, word, for_ever=True)


CUT = lying_glance.cut(after=MIB)

FAULTS = (
    once("cut after n bytes", "data", CUT),
    once("cut, then 200 in place of 206", "data", CUT, lying_glance.whole_as_200()),
    once("cut, then 206 with the whole body", "data", CUT, lying_glance.whole_as_206()),
    once(
        "cut, then 206 that says that it is whole",
        "data",
        CUT,
        lying_glance.whole_as_206(content_range="true"),
    ),
    once("cut, then 429", "data", CUT, lying_glance.status(429, Retry_After="1")),
    once("500 once", "data", lying_glance.status(500)),
    once("503 once for the metadata", "show", lying_glance.status(503, Retry_After="1")),
    once("no answer once", "show", lying_glance.no_answer()),
    ever("cut for ever", "data", "glance-unavailable", lying_glance.cut(after=0)),
    ever("silence", "data", "glance-unavailable", lying_glance.silence(after=0)),
    ever("no answer", "data", "glance-unavailable", lying_glance.no_answer()),
    ever("one byte wrong", "data", "digest-mismatch", lying_glance.body(WRONG)),
    ever("another image of this length", "data", "digest-mismatch", lying_glance.body(OTHER)),
    ever("too short", "data", "glance-refused", lying_glance.body(DATA[:-1])),
    ever("too long", "data", "glance-refused", lying_glance.body(DATA + b"x")),
    ever(
        "too long, and no length",
        "data",
        "glance-refused",
        lying_glance.body(DATA + b"x", chunked=True),
    ),
    ever("wrong Content-Length", "data", "glance-refused", lying_glance.body(b"x" * 7)),
    ever("401 in mid-download", "data", "glance-refused", CUT, lying_glance.status(401)),
    ever("403", "data", "image-forbidden", lying_glance.status(403)),
    ever("404", "data", "image-not-found", lying_glance.status(404)),
    ever("404 for the metadata", "show", "image-not-found", lying_glance.status(404)),
    ever("409", "data", "glance-refused", lying_glance.status(409)),
    ever("429", "data", "glance-unavailable", lying_glance.status(429, Retry_After="9")),
    ever("500", "data", "glance-unavailable", lying_glance.status(500)),
    ever("503 for the metadata", "show", "glance-unavailable", lying_glance.status(503)),
    ever(
        "redirect",
        "data",
        "glance-refused",
        lying_glance.status(302, Location="http://elsewhere.test/"),
    ),
    ever("no content", "data", "glance-refused", lying_glance.status(204)),
    ever("metadata that is no JSON", "show", "glance-refused", lying_glance.text("<html>")),
    ever("metadata of a list", "show", "glance-refused", lying_glance.text("[]")),
    ever("metadata without end", "show", "glance-refused", lying_glance.text("[" * 2 * MIB)),
    ever(
        "null digest, and a checksum",
        "show",
        None,
        lying_glance.metadata(os_hash_algo=None, os_hash_value=None),
    ),
    ever(
        "null digest",
        "show",
        "image-unacceptable",
        lying_glance.metadata(os_hash_algo=None, os_hash_value=None, checksum=None),
    ),
    ever(
        "unknown digest algorithm",
        "show",
        "image-unacceptable",
        lying_glance.metadata(os_hash_algo="rot13", os_hash_value="ab" * 32, checksum=None),
    ),
    ever(
        "changed between metadata and data",
        "show",
        "glance-refused",
        lying_glance.metadata(size=len(DATA) + 512),
    ),
    ever(
        "huge header",
        "data",
        "glance-unavailable",
        lying_glance.body(DATA, headers={"X-Huge": HUGE}),
    ),
    ever("not active", "show", "image-not-active", lying_glance.metadata(status="deactivated")),
)
PERSONAL = {"image-forbidden", "image-not-found"}


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire an agent that repeats what fails, and remembers failures."""
    require_programs("qemu-img")
    known = {"retries": RETRIES, "failure_ttl": TTL, "stall_timeout": 0.5}
    async with in_a_task(rig_on(tmp_path, glance.url, glance=known)) as wired:
        yield wired


async def ask(rig: Rig, image_id: ImageId, caller: Caller = NOBODY) -> str | None:
    """Want the image; give the word of the problem, None where it came."""
    try:
        await rig.bases.ensure(image_id, caller)
    except ProblemError as error:
        return error.word
    return None


async def crowd(rig: Rig, image_id: ImageId) -> set[str | None]:
    """Let many want it at the same time."""
    return set(await asyncio.gather(*(ask(rig, image_id) for _ in range(CROWD))))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_ends_in_success_or_in_the_right_problem(
    rig: Rig, glance: LyingGlance, fault: Fault
) -> None:
    """One for all who wait, and for those who come just after; what is cached goes on meanwhile."""
    cached = glance.add(OTHER[: MIB // 2])
    assert await ask(rig, cached) is None
    image_id = glance.add(DATA)
    glance.seen.clear()
    fault.arrange(glance)
    assert await crowd(rig, image_id) == {fault.word}
    asked = len(glance.calls(fault.call))
    # aiohttp repeats a GET by itself, once, where a connection it has used before is closed.
    assert asked <= 2 * (len(fault.lies) + RETRIES + 1)
    if fault.word is None:
        assert rig.left_in_ingest() == []
        return
    assert (await rig.bases.ensure(cached, NOBODY)).result is CacheResult.HIT
    assert set(rig.left_in_ingest()) <= {f"{image_id}.part", f"{image_id}.part.json"}
    if fault.word not in PERSONAL:
        assert await crowd(rig, image_id) == {fault.word}
        assert len(glance.calls(fault.call)) == asked
    glance.truth(fault.call)
    rig.clock.now += TTL
    assert await crowd(rig, image_id) == {None}
    assert rig.left_in_ingest() == []


async def test_a_download_that_was_cut_goes_on_where_it_was(rig: Rig, glance: LyingGlance) -> None:
    """No byte comes twice."""
    image_id = glance.add(DATA)
    glance.lie("data", CUT)
    assert await ask(rig, image_id) is None
    assert [seen.range for seen in glance.calls("data")] == [None, f"bytes={MIB}-"]


async def test_who_comes_just_after_hears_when_to_come_again(rig: Rig, glance: LyingGlance) -> None:
    """Not before Glance said, and what Glance said is passed on."""
    image_id = glance.add(DATA)
    glance.always("data", lying_glance.status(429, Retry_After="60"))
    for _ in range(2):
        with pytest.raises(GlanceUnavailableError) as caught:
            await rig.bases.ensure(image_id, NOBODY)
        assert caught.value.retry_after == 60


async def test_a_prefetch_hears_of_a_failure_too(rig: Rig, glance: LyingGlance) -> None:
    """A crowd of prefetches, which wait for nothing, asks a broken server no more often."""
    image_id = glance.add(DATA)
    glance.always("data", lying_glance.status(500))
    assert await ask(rig, image_id) == "glance-unavailable"
    asked = len(glance.seen)
    with pytest.raises(GlanceUnavailableError):
        await rig.images.prefetch(image_id, NOBODY, pin=False, wait=False)
    assert len(glance.seen) == asked


async def test_a_crowd_of_prefetches_asks_for_the_metadata_once(
    rig: Rig, glance: LyingGlance
) -> None:
    """A server that cannot describe an image is asked by one for all, and then left in peace."""
    image_id = glance.add(DATA)
    glance.always("show", lying_glance.status(500))

    async def prefetch() -> None:
        with pytest.raises(GlanceUnavailableError):
            await rig.images.prefetch(image_id, NOBODY, pin=False, wait=False)

    for _ in range(2):
        await asyncio.gather(*(prefetch() for _ in range(CROWD)))
    assert len(glance.calls("show")) == RETRIES + 1
    glance.truth("show")
    rig.clock.now += TTL
    assert await ask(rig, image_id) is None


async def test_what_failed_with_one_token_is_no_answer_for_another(
    rig: Rig, glance: LyingGlance
) -> None:
    """A tenant that may not have an image costs nobody else any time."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.status(403))
    assert await ask(rig, image_id, TENANT) == "image-forbidden"
    assert await ask(rig, image_id, ANOTHER) is None


async def test_a_remembered_failure_tells_a_stranger_nothing(rig: Rig, glance: LyingGlance) -> None:
    """Who may not have the image hears of that, and not of what became of it."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.body(WRONG), lying_glance.body(WRONG))
    assert await ask(rig, image_id) == "digest-mismatch"
    glance.always("show", lying_glance.status(404))
    assert await ask(rig, image_id, TENANT) == "image-not-found"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1:{closed}", "127.0.0.1"),
        ("https://127.0.0.1:{open}", "glance.ca_file"),
        ("http://glance.test", "glance.test"),
    ],
    ids=["refused connection", "TLS error", "DNS error"],
)
async def test_who_cannot_reach_glance_is_told_what_to_look_at(
    tmp_path: Path, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch, url: str, named: str
) -> None:
    """The problem names the host, or the key of the configuration."""
    known, of_system = glance.url.rpartition(":")[2], socket.getaddrinfo

    def look_up(host: str, *others: Any, **more: Any) -> Any:  # noqa: ANN401 -- as the system's
        if host == "glance.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return of_system(host, *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    where = url.format(open=known, closed=closed)
    async with in_a_task(rig_on(tmp_path, where, glance={"failure_ttl": TTL})) as rig:
        for _ in range(2):
            with pytest.raises(GlanceUnavailableError, match=named):
                await rig.bases.ensure(glance.add(DATA), NOBODY)
        assert rig.left_in_ingest() == []
