"""Disks whose base and template are at hand: made in one go, or not at all."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.errors import CatalogError, DiskConflictError, DiskFullError
from cacheagent.model import CacheResult, Caller, DiskFormat, DiskSpec, DiskState
from cacheagent.service.atonce import AtOnce
from cacheagent.service.bases import Ensured
from cacheagent.service.intent import intended, pending
from tests.fakes.values import disk_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cacheagent.backends.store import Clone
    from cacheagent.model import Base, CachedImage, Disk, DiskKey, ImageId
    from cacheagent.sync.lane import Ended
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
KEY = disk_key(1)
FULL = DiskFullError(required_bytes=4096, available_bytes=0)


@pytest.fixture
async def spec(rig: Rig, glance: LyingGlance) -> DiskSpec:
    """Give disks of an image of which one was made before: its template is at hand."""
    image_id = glance.add(b"data" * (MIB // 4))
    found = of(image_id)
    await rig.disks.create(disk_key(99), found, NOBODY)
    return found


def of(image_id: ImageId) -> DiskSpec:
    """Ask for an overlay."""
    return DiskSpec(image_id=image_id, size=None)


def path_of(rig: Rig, spec: DiskSpec, key: DiskKey = KEY) -> Path:
    """Tell where the disk is to lie."""
    return rig.layout.disk(key, spec.format)


def fail_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, error: Exception
) -> list[int]:
    """Let a deed fail the first time, having left a file that is not finished; count the times."""
    parts = getattr(rig.parts, owner)
    deed, times = getattr(parts, name), list[int]()
    left = rig.layout.unfinished_disk(KEY, DiskFormat.QCOW2)

    def failing(each: Sequence[Any], *more: Any) -> list[Ended]:  # noqa: ANN401 -- those of the deed
        times.append(len(each))
        if len(times) > 1:
            ended: list[Ended] = deed(each, *more)
            return ended
        left.parent.mkdir(exist_ok=True)
        left.touch()
        return [(None, error)] * len(each)

    monkeypatch.setattr(parts, name, failing)
    return times


async def test_a_disk_of_what_is_at_hand_takes_one_turn_of_one_thread(
    rig: Rig, spec: DiskSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else of catalog and store is asked for it, and it is told and counted like others."""
    told = rig.metric("disk_create_seconds_count", mode="overlay")
    saved = rig.metric("bytes_saved_total")
    for owner, name in (
        (rig.parts.catalog, "claim_disk"),
        (rig.parts.catalog, "finish_disk"),
        (rig.parts.store, "clone_disk"),
    ):
        monkeypatch.setattr(owner, name, None)
    view, anew = await rig.disks.create(KEY, spec, NOBODY)
    assert anew
    assert view.disk.state is DiskState.READY
    assert view.path == path_of(rig, spec)
    assert view.path.exists()
    assert rig.metric("disk_create_seconds_count", mode="overlay") == told + 1
    assert rig.metric("bytes_saved_total") == saved + MIB
    again, anew = await rig.disks.create(KEY, spec, NOBODY)
    assert (again.disk, anew) == (view.disk, False)


def wish(rig: Rig, spec: DiskSpec, key: DiskKey) -> tuple[Disk, Any]:
    """Want a disk, of whatever base its image has."""
    wanted = pending(key, spec, rig.parts.now())

    def fit(cached: CachedImage, base: Base) -> Disk:
        return intended(wanted, spec, Ensured(base, cached.image, CacheResult.HIT))

    return wanted, fit


@pytest.fixture
async def at_once(rig: Rig, told: list[Disk]) -> AsyncIterator[AtOnce]:
    """Give a thread of its own over the parts of the rig."""
    made = AtOnce(rig.parts, told.append)
    yield made
    await made.close()


@pytest.fixture
def told() -> list[Disk]:
    """Keep what is told of disks that were made."""
    return []


async def test_what_waits_together_is_made_together(
    rig: Rig, spec: DiskSpec, at_once: AtOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come while a disk waits for the device are collected; one bad one harms none."""
    clone, sizes = rig.parts.store.clone_disks, list[int]()
    busy, go_on = threading.Event(), threading.Event()

    def slow(clones: Sequence[Clone]) -> list[Ended]:
        sizes.append(len(clones))
        busy.set()
        assert go_on.wait(30)
        return clone(clones)

    monkeypatch.setattr(rig.parts.store, "clone_disks", slow)
    keys = [disk_key(number) for number in range(1, 7)]
    planted = path_of(rig, spec, keys[-1])
    planted.parent.mkdir()
    planted.touch()
    first = asyncio.create_task(at_once.make(*wish(rig, spec, keys[0])))
    await asyncio.to_thread(busy.wait, 30)
    others = [asyncio.create_task(at_once.make(*wish(rig, spec, key))) for key in keys[1:]]
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait({first, *others})
    assert sizes == [1, len(others)]
    with pytest.raises(DiskConflictError, match="not ours"):
        others.pop().result()
    for _, made in (first.result(), *(other.result() for other in others)):
        assert made is not None
        assert path_of(rig, spec, made.key).exists()


async def test_a_base_that_is_damaged_meanwhile_is_not_used(
    rig: Rig, spec: DiskSpec, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks waits a little longer, for the base that comes anew."""
    claim, loop = rig.parts.catalog.claim_disks, asyncio.get_running_loop()
    assert spec.image_id is not None
    todo = [(await rig.bases.ensure(spec.image_id, NOBODY)).base]

    def damage_then(wanted: Sequence[tuple[Disk, Any]]) -> list[Ended]:
        claims = claim(wanted)
        if todo:
            rig.clock.now += 1
            damaged = rig.repair.damaged(todo.pop(), "a test says so")
            asyncio.run_coroutine_threadsafe(damaged, loop).result(30)
        return claims

    monkeypatch.setattr(rig.parts.catalog, "claim_disks", damage_then)
    view, anew = await rig.disks.create(KEY, spec, NOBODY)
    assert anew
    assert view.path.exists()
    assert len(glance.calls("data")) == 2


async def test_a_file_of_somebody_else_stays(rig: Rig, spec: DiskSpec) -> None:
    """It has the name of the disk: the request is a conflict, and leaves nothing."""
    path = path_of(rig, spec)
    await asyncio.to_thread(path.parent.mkdir)
    await asyncio.to_thread(path.write_text, "theirs")
    with pytest.raises(DiskConflictError, match="not ours"):
        await rig.disks.create(KEY, spec, NOBODY)
    assert await asyncio.to_thread(path.read_text) == "theirs"
    assert await asyncio.to_thread(lambda: list(path.parent.iterdir())) == [path]
    assert await rig.parts.catalog.disk(KEY) is None


@pytest.mark.parametrize(("owner", "deed"), [("store", "clone_disks"), ("catalog", "finish_disks")])
async def test_a_disk_that_finds_no_room_is_made_by_itself(
    rig: Rig, spec: DiskSpec, monkeypatch: pytest.MonkeyPatch, owner: str, deed: str
) -> None:
    """It waits there for what is evicted; what the first try has left is not in its way."""
    times = fail_once(rig, monkeypatch, owner, deed, FULL)
    view, anew = await rig.disks.create(KEY, spec, NOBODY)
    assert anew
    assert times[0] == 1
    assert await asyncio.to_thread(lambda: list(view.path.parent.iterdir())) == [view.path]
    assert await rig.parts.catalog.disk(KEY) == view.disk


@pytest.mark.parametrize(
    ("owner", "deed", "error"),
    [
        ("store", "clone_disks", OSError(errno.EIO, "broken")),
        ("catalog", "finish_disks", CatalogError("broken")),
    ],
)
async def test_what_fails_leaves_nothing(
    rig: Rig,
    spec: DiskSpec,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    deed: str,
    error: Exception,
) -> None:
    """The error is told, and the next request begins afresh."""
    times = fail_once(rig, monkeypatch, owner, deed, error)
    with pytest.raises(type(error), match="broken"):
        await rig.disks.create(KEY, spec, NOBODY)
    assert times == [1]
    assert await rig.parts.catalog.disk(KEY) is None
    assert not await asyncio.to_thread(path_of(rig, spec).parent.exists)
    view, anew = await rig.disks.create(KEY, spec, NOBODY)
    assert anew
    assert view.path.exists()


async def test_a_claim_that_fails_is_told(
    rig: Rig, spec: DiskSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made then."""

    def broken(wanted: Sequence[object]) -> list[Ended]:
        return [(None, CatalogError("broken"))] * len(wanted)

    monkeypatch.setattr(rig.parts.catalog, "claim_disks", broken)
    with pytest.raises(CatalogError, match="broken"):
        await rig.disks.create(KEY, spec, NOBODY)
    assert not await asyncio.to_thread(path_of(rig, spec).parent.exists)


async def test_who_leaves_finds_the_disk_made(
    rig: Rig, spec: DiskSpec, at_once: AtOnce, told: list[Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread goes on to the end, which is told; only then does the caller hear of its leave."""
    clone = rig.parts.store.clone_disks
    busy, go_on = threading.Event(), threading.Event()

    def slow(clones: Sequence[Clone]) -> list[Ended]:
        busy.set()
        assert go_on.wait(30)
        return clone(clones)

    monkeypatch.setattr(rig.parts.store, "clone_disks", slow)
    leaving = asyncio.create_task(at_once.make(*wish(rig, spec, KEY)))
    await asyncio.to_thread(busy.wait, 30)
    leaving.cancel()
    go_on.set()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    row = await rig.parts.catalog.disk(KEY)
    assert row is not None
    assert told == [row]
    assert row.state is DiskState.READY
    assert await asyncio.to_thread(path_of(rig, spec).exists)


async def test_a_template_that_is_not_at_hand_leaves_the_disk_claimed(
    rig: Rig, spec: DiskSpec, at_once: AtOnce, told: list[Disk]
) -> None:
    """To make one takes a process: that is not for the thread that others wait for."""
    larger = DiskSpec(image_id=spec.image_id, size=3 * MIB)
    claim, made = await at_once.make(*wish(rig, larger, KEY))
    assert made is None
    assert claim.intent is not None
    assert await rig.parts.catalog.disk(KEY) == claim.intent
    assert told == []
