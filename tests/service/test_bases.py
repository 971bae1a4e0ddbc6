"""Ensure a base: one download for all who want it, and what becomes of each of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from cacheagent.errors import (
    DigestMismatchError,
    GlanceUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageUnacceptableError,
    ProblemError,
    ShuttingDownError,
    UnauthenticatedError,
)
from cacheagent.model import CacheResult, Caller, SpaceUsage
from tests.fakes import lying_glance
from tests.service.rig import in_a_task, rig_on, until

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from cacheagent.backends.store import Manifest
    from cacheagent.model import ImageId
    from cacheagent.service.bases import Ensured
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = os.urandom(12 * MIB)
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
STRANGER = Caller(token="stranger")  # noqa: S106 -- nor this


async def wait_for(rig: Rig, image_id: ImageId, *callers: Caller) -> list[asyncio.Task[Ensured]]:
    """Let callers want an image, one after the other, until all of them wait for it."""
    tasks = []
    run = rig.bases._flights  # noqa: SLF001 -- who has joined, not only who is on the way there
    for caller in callers:
        before = run.waiters(image_id)
        tasks.append(asyncio.create_task(rig.bases.ensure(image_id, caller)))
        await until(lambda: run.waiters(image_id) > before)  # noqa: B023 -- done before the next
    return tasks


async def test_crowd_shares_one_download(rig: Rig, glance: LyingGlance) -> None:
    """The first one is told of a miss, those who joined it of that, and later ones of a hit."""
    gate = asyncio.Event()
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.held(gate))
    tasks = await wait_for(rig, image_id, *[NOBODY] * 5)
    assert (rig.bases.all_waiters(), rig.bases.coming()) == (5, frozenset([image_id]))
    gate.set()
    results = [(await task).result for task in tasks]
    assert results == [CacheResult.MISS, *[CacheResult.JOINED] * 4]
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.HIT
    assert len(glance.calls("data")) == 1
    assert (rig.bases.all_waiters(), rig.bases.coming()) == (0, frozenset())


async def test_one_who_gives_up_stops_nothing(rig: Rig, glance: LyingGlance) -> None:
    """Whoever began a download may leave it to those who came later."""
    gate = asyncio.Event()
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.held(gate))
    first, second = await wait_for(rig, image_id, NOBODY, NOBODY)
    first.cancel()
    await asyncio.wait({first})
    assert rig.bases.waiters(image_id) == 1
    gate.set()
    assert (await second).result is CacheResult.JOINED
    assert len(glance.calls("data")) == 1


async def test_last_one_to_leave_stops_the_download_and_keeps_the_part(
    rig: Rig, glance: LyingGlance
) -> None:
    """Bytes that nobody waits for stop coming; those that came are not fetched again."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.silence(after=9 * MIB))
    tasks = await wait_for(rig, image_id, NOBODY, NOBODY)
    await until(lambda: rig.metric("download_bytes_total", source="glance") >= 8 * MIB)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert rig.bases.coming() == frozenset()
    assert rig.left_in_ingest() == [f"{image_id}.part", f"{image_id}.part.json"]
    assert rig.parts.room.reserved == 0
    ensured = await rig.bases.ensure(image_id, NOBODY)
    assert [seen.range for seen in glance.calls("data")] == [None, f"bytes={8 * MIB}-"]
    path = rig.layout.base(ensured.base.base_id, ensured.base.format)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(DATA).digest()
    assert rig.left_in_ingest() == []


async def test_resumed_download_needs_room_for_the_rest_only(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come lies on the disk already, and is not asked of it a second time."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.silence(after=9 * MIB))
    (task,) = await wait_for(rig, image_id, NOBODY)
    await until(lambda: rig.metric("download_bytes_total", source="glance") >= 8 * MIB)
    task.cancel()
    await asyncio.wait({task})
    left = SpaceUsage(total=1 << 40, available=len(DATA) - 8 * MIB)
    monkeypatch.setattr(rig.parts.room, "_usage", AsyncMock(return_value=left))
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.MISS


async def test_equal_content_with_and_without_a_digest_waits_for_no_one_for_ever(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """Two images whose bytes are one base come in, even where they take turns."""
    digest = {"os_hash_algo": "sha256", "os_hash_value": hashlib.sha256(DATA).hexdigest()}
    named = glance.add(DATA, **digest)
    unnamed = glance.add(DATA, os_hash_algo=None, os_hash_value=None)
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    async with in_a_task(rig_on(tmp_path, glance.url, glance={"concurrency": 1})) as rig:
        first = await wait_for(rig, unnamed, NOBODY)
        await until(lambda: glance.calls("data"))
        second = await wait_for(rig, named, NOBODY)
        gate.set()
        bases = {(await task).base.base_id for task in (*first, *second)}
    assert len(bases) == 1


async def test_refusal_of_one_tenant_costs_the_others_nothing(
    rig: Rig, glance: LyingGlance
) -> None:
    """Where the token that a download runs with is refused, the next one goes on with its own."""
    gate, image_id = asyncio.Event(), glance.add(DATA)

    async def refusal(exchange: lying_glance.Exchange) -> web.StreamResponse:
        await gate.wait()
        return await lying_glance.status(401)(exchange)

    glance.lie("data", lying_glance.silence(after=9 * MIB), refusal)
    (leaving,) = await wait_for(rig, image_id, NOBODY)
    await until(lambda: rig.metric("download_bytes_total", source="glance") >= 8 * MIB)
    leaving.cancel()
    await asyncio.wait({leaving})
    refused, waiting = await wait_for(rig, image_id, TENANT, NOBODY)
    gate.set()
    with pytest.raises(UnauthenticatedError):
        await refused
    assert (await waiting).result is CacheResult.MISS
    assert [seen.range for seen in glance.calls("data")[1:]] == [f"bytes={8 * MIB}-"] * 2


async def test_one_who_comes_while_the_last_one_leaves_starts_afresh(
    rig: Rig, glance: LyingGlance
) -> None:
    """A download that is being stopped is no good to anybody; the next one is."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.silence(after=9 * MIB))
    (leaving,) = await wait_for(rig, image_id, NOBODY)
    await until(lambda: rig.metric("download_bytes_total", source="glance") >= 8 * MIB)
    leaving.cancel()
    await asyncio.sleep(0)
    assert rig.bases.coming() == {image_id}
    assert (await rig.bases.ensure(image_id, TENANT)).result is CacheResult.MISS
    assert leaving.cancelled()


@pytest.mark.parametrize(
    ("truth", "lie", "error"),
    [
        ({}, lying_glance.status(503), GlanceUnavailableError),
        ({"os_hash_value": "0" * 128}, None, DigestMismatchError),
        ({"disk_format": "qcow2"}, None, ImageUnacceptableError),
    ],
)
async def test_failure_is_shared_by_all_who_wait(
    rig: Rig,
    glance: LyingGlance,
    truth: dict[str, object],
    lie: lying_glance.Lie | None,
    error: type[ProblemError],
) -> None:
    """Nine others do not try again what has just failed, and whoever comes later does."""
    gate, image_id = asyncio.Event(), glance.add(DATA, **truth)

    async def answer(exchange: lying_glance.Exchange) -> web.StreamResponse:
        await gate.wait()
        return await (lie or lying_glance.whole_as_200())(exchange)

    glance.lie("data", answer)
    tasks = await wait_for(rig, image_id, *[NOBODY] * 10)
    gate.set()
    await asyncio.wait(tasks)
    assert {type(task.exception()) for task in tasks} == {error}
    assert len(glance.calls("data")) == 1
    assert rig.metric("download_failures_total", reason=error.word) == 1
    assert rig.bases.failures()[image_id].why == str(tasks[0].exception())
    glance.images[image_id].metadata |= {
        "os_hash_value": hashlib.sha512(DATA).hexdigest(),
        "disk_format": "raw",
    }
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.MISS
    assert rig.bases.failures() == {}


async def test_failure_that_no_retry_can_mend_leaves_nothing(rig: Rig, glance: LyingGlance) -> None:
    """A wrong image leaves neither bytes nor intent; one that Glance could not send leaves both."""
    wrong, late = glance.add(DATA, os_hash_value="0" * 128), glance.add(DATA)
    with pytest.raises(DigestMismatchError):
        await rig.bases.ensure(wrong, NOBODY)
    assert rig.left_in_ingest() == []
    assert await rig.parts.catalog.images() == []
    glance.lie("data", lying_glance.cut(after=9 * MIB))
    with pytest.raises(GlanceUnavailableError):
        await rig.bases.ensure(late, NOBODY)
    assert rig.left_in_ingest() == [f"{late}.part", f"{late}.part.json"]
    assert [cached.image.image_id for cached in await rig.parts.catalog.images()] == [late]


@pytest.mark.parametrize(
    ("status", "error"), [(401, UnauthenticatedError), (403, ImageForbiddenError)]
)
async def test_refusal_of_one_tenant_is_not_anothers(
    rig: Rig, glance: LyingGlance, status: int, error: type[ProblemError]
) -> None:
    """Where the one whose token was used is refused, those who wait go on with their own."""
    gate, image_id = asyncio.Event(), glance.add(DATA)

    async def refuse(exchange: lying_glance.Exchange) -> web.StreamResponse:
        await gate.wait()
        return await lying_glance.status(status)(exchange)

    glance.lie("data", refuse)
    refused, *others = await wait_for(rig, image_id, STRANGER, TENANT, STRANGER, TENANT)
    gate.set()
    with pytest.raises(error):
        await refused
    first, same, second = others
    with pytest.raises(error):
        await same
    assert {(await first).result, (await second).result} == {CacheResult.MISS, CacheResult.JOINED}
    tokens = [seen.headers["X-Auth-Token"] for seen in glance.calls("data")]
    assert tokens == ["stranger", "tenant"]
    assert rig.bases.failures() == {}


async def test_refusal_is_asked_for_anew_for_each_tenant(rig: Rig, glance: LyingGlance) -> None:
    """Where nobody may have the image, each one is told so for its own token, and it ends."""
    image_id = glance.add(DATA)
    glance.always("data", lying_glance.status(403))
    tasks = [
        asyncio.create_task(rig.bases.ensure(image_id, Caller(token=f"tenant-{n}")))
        for n in range(5)
    ]
    await asyncio.wait(tasks)
    assert {type(task.exception()) for task in tasks} == {ImageForbiddenError}
    assert rig.bases.coming() == frozenset()


async def test_equal_content_is_downloaded_once(rig: Rig, glance: LyingGlance) -> None:
    """An image whose digest is here already costs no bytes, and shares the base."""
    first, second = glance.add(DATA), glance.add(DATA, name="a copy")
    one, two = [await rig.bases.ensure(image_id, NOBODY) for image_id in (first, second)]
    assert one.base == two.base
    assert (one.result, two.result) == (CacheResult.MISS, CacheResult.HIT)
    assert len(glance.calls("data")) == 1
    manifest = await rig.parts.store.read_manifest(one.base.base_id, one.base.format)
    assert manifest is not None
    assert {image.image_id for image in manifest.images} == {first, second}


async def test_equal_content_at_once_is_downloaded_once(rig: Rig, glance: LyingGlance) -> None:
    """Two images of one content that come at the same time do not come twice."""
    images = [glance.add(DATA) for _ in range(3)]
    ensured = await asyncio.gather(*(rig.bases.ensure(each, NOBODY) for each in images))
    assert len({each.base.base_id for each in ensured}) == 1
    assert len(glance.calls("data")) == 1


async def test_content_without_a_digest_is_stored_once(rig: Rig, glance: LyingGlance) -> None:
    """Where Glance has no strong digest, only the bytes tell that they are here already."""
    weak = {"os_hash_algo": None, "os_hash_value": None}
    images = [glance.add(DATA, **weak) for _ in range(2)]
    ensured = await asyncio.gather(*(rig.bases.ensure(each, NOBODY) for each in images))
    assert {each.base.base_id for each in ensured} == {f"sha256-{hashlib.sha256(DATA).hexdigest()}"}
    assert len(glance.calls("data")) == 2
    assert len([path for path in rig.layout.bases.iterdir() if path.suffix != ".json"]) == 1
    assert rig.left_in_ingest() == []


async def test_copy_that_says_something_else_is_no_copy(rig: Rig, glance: LyingGlance) -> None:
    """Equal bytes under another format do not slip in beside a base that is here."""
    await rig.bases.ensure(glance.add(DATA), NOBODY)
    with pytest.raises(ImageUnacceptableError):
        await rig.bases.ensure(glance.add(DATA, disk_format="vmdk"), NOBODY)
    assert len(glance.calls("data")) == 1


async def test_base_that_has_gone_is_fetched_again(rig: Rig, glance: LyingGlance) -> None:
    """A base whose file somebody removed is no hit."""
    image_id = glance.add(DATA)
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    rig.layout.base(base.base_id, base.format).unlink()
    again = await rig.bases.ensure(image_id, NOBODY)
    assert (again.result, again.base.base_id) == (CacheResult.MISS, base.base_id)
    assert rig.layout.base(base.base_id, base.format).read_bytes() == DATA


async def test_hit_is_the_callers_right_too(rig: Rig, glance: LyingGlance) -> None:
    """What is here is given to those who may have it, and to nobody else (CVE-2013-4428)."""
    image_id = glance.add(DATA)
    await rig.bases.ensure(image_id, TENANT)
    glance.forbids.add("stranger")
    with pytest.raises(ImageForbiddenError):
        await rig.bases.ensure(image_id, STRANGER)
    glance.images[image_id].metadata["status"] = "deactivated"
    with pytest.raises(ImageNotActiveError):
        await rig.bases.ensure(image_id, Caller(token="another"))  # noqa: S106 -- the fake's


async def test_download_is_made_with_the_callers_token(rig: Rig, glance: LyingGlance) -> None:
    """A private image comes by the right of the tenant who asked for it."""
    image_id = glance.add(DATA, visibility="private")
    await rig.bases.ensure(image_id, TENANT)
    assert {seen.headers.get("X-Auth-Token") for seen in glance.seen if seen.image_id} == {"tenant"}


async def test_whoever_waits_at_the_stop_is_told(rig: Rig, glance: LyingGlance) -> None:
    """The stop ends all waiting at once, and nothing begins after it."""
    image_id, other = glance.add(DATA), glance.add(b"other")
    glance.lie("data", lying_glance.silence(after=9 * MIB))
    tasks = await wait_for(rig, image_id, NOBODY, NOBODY)
    await until(lambda: glance.calls("data"))
    await rig.bases.stop()
    await asyncio.wait(tasks)
    assert {type(task.exception()) for task in tasks} == {ShuttingDownError}
    with pytest.raises(ShuttingDownError):
        await rig.bases.ensure(other, NOBODY)
    assert len(glance.calls("data")) == 1
    assert [cached.image.image_id for cached in await rig.parts.catalog.images()] == [image_id]


async def test_base_that_is_published_while_its_last_waiter_leaves_stays(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made is kept, and known by its image, though nobody is left to hear of it."""
    image_id = glance.add(DATA)
    publish, publishing = rig.parts.store.publish, asyncio.Event()

    async def slow(source: Path, record: Manifest) -> Manifest:
        publishing.set()
        return await publish(source, record)

    monkeypatch.setattr(rig.parts.store, "publish", slow)
    (leaving,) = await wait_for(rig, image_id, NOBODY)
    await publishing.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    assert rig.bases.failures() == {}
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.HIT
    assert rig.metric("download_failures_total", reason="cancelled") == 0
