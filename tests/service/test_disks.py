"""Disks: one per name, whoever asks at the same time, and whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.errors import (
    BaseInUseError,
    DigestMismatchError,
    DiskConflictError,
    DiskNotFoundError,
    DiskTooSmallError,
    GlanceUnavailableError,
    ImageForbiddenError,
)
from cacheagent.model import (
    CacheResult,
    Caller,
    DiskFormat,
    DiskMode,
    DiskSpec,
    DiskState,
    FileSystem,
    ImageId,
)
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import assert_no_trace, gathered, state_of, until

if TYPE_CHECKING:
    from aiohttp import web

    from cacheagent.backends.catalog import DiskIntent
    from cacheagent.model import Disk, DiskView
    from cacheagent.service.bases import Ensured
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = b"data" * (MIB // 4)
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
KEY = disk_key(1)


@pytest.fixture
def image_id(glance: LyingGlance) -> ImageId:
    """Give an image."""
    return glance.add(DATA)


@pytest.fixture
def gate(glance: LyingGlance) -> asyncio.Event:
    """Let its data come when the test says so."""
    event = asyncio.Event()
    glance.lie("data", lying_glance.held(event))
    return event


def of(image_id: ImageId | None, size: int | None = None) -> DiskSpec:
    """Ask for an overlay of the image."""
    return DiskSpec(image_id=image_id, size=size)


async def settled(rig: Rig) -> DiskState:
    """Wait until the disk is pending no more."""
    while (state := await state_of(rig, KEY)) is DiskState.PENDING:
        assert rig.layout.state_dir.is_dir()
    return state


async def test_same_request_gives_the_same_disk(rig: Rig, image_id: ImageId) -> None:
    """Whoever asks again, were it twenty times at once, gets the one disk that was made."""
    answers = await asyncio.gather(
        *(rig.disks.create(KEY, of(image_id), NOBODY) for _ in range(20))
    )
    assert sorted(made for _, made in answers) == [False] * 19 + [True]
    assert len({view.path for view, _ in answers}) == 1
    assert [path.name for path in rig.layout.instance(KEY.instance_id).iterdir()] == ["root.qcow2"]
    # The size that it has anyway is no other disk.
    view, made = await rig.disks.create(KEY, of(image_id, MIB), NOBODY)
    assert (view.disk.virtual_size, made) == (MIB, False)


async def test_two_who_begin_at_once_begin_one_disk(
    rig: Rig, image_id: ImageId, gate: asyncio.Event
) -> None:
    """Of two that do not wait one begins the disk, and the other one finds it pending."""
    answers = await asyncio.gather(*(rig.disks.begin(KEY, of(image_id), NOBODY) for _ in range(2)))
    assert sorted(made for _, made in answers) == [False, True]
    assert {view.disk.state for view, _ in answers} == {DiskState.PENDING}
    await until(lambda: rig.bases.waiters(image_id))
    assert rig.bases.waiters(image_id) == 1
    gate.set()
    assert await settled(rig) is DiskState.READY
    view, made = await rig.disks.begin(KEY, of(image_id), NOBODY)
    assert (view.disk.state, made) == (DiskState.READY, False)


async def begun_in_company(
    rig: Rig, spec: DiskSpec, monkeypatch: pytest.MonkeyPatch
) -> asyncio.Task[tuple[DiskView, bool]]:
    """Begin the disk, while somebody who waits for it has come between that and its making."""
    begin_disk = rig.parts.catalog.begin_disk
    waiting: list[asyncio.Task[tuple[DiskView, bool]]] = []

    async def begin_in_company(disk: Disk, lease_id: str | None = None) -> DiskIntent:
        if not waiting:
            waiting.append(asyncio.create_task(rig.disks.create(KEY, spec, NOBODY)))
            # Let it come as far as the lock of the disk, which whoever begins it holds.
            await rig.parts.catalog.disk(KEY)
            await rig.parts.catalog.disk(KEY)
        return await begin_disk(disk, lease_id)

    monkeypatch.setattr(rig.parts.catalog, "begin_disk", begin_in_company)
    view, begun = await rig.disks.begin(KEY, spec, NOBODY)
    assert (view.disk.state, begun) == (DiskState.PENDING, True)
    return waiting[0]


async def test_begun_and_waited_for_at_once_is_one_disk(
    rig: Rig, image_id: ImageId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits and one that does not share the making of their disk."""
    waiting = await begun_in_company(rig, of(image_id), monkeypatch)
    assert (await waiting)[0].disk.state is DiskState.READY
    view, made = await rig.disks.create(KEY, of(image_id), NOBODY)
    assert (view.disk.state, made) == (DiskState.READY, False)


async def test_failure_is_shared_by_those_who_wait_and_those_who_do_not(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was begun does not vanish when it fails for somebody who waits as well."""
    image_id = glance.add(DATA)
    glance.lie("data", lying_glance.status(503))
    waiting = await begun_in_company(rig, of(image_id), monkeypatch)
    with pytest.raises(GlanceUnavailableError):
        await waiting
    assert await settled(rig) is DiskState.FAILED
    assert "503" in str((await rig.disks.show(KEY)).disk.error)


async def test_conflict_does_not_wait_for_what_is_pending(
    rig: Rig, image_id: ImageId, gate: asyncio.Event
) -> None:
    """A name that was given to one disk is refused to another at once, not after a download."""
    await rig.disks.begin(KEY, of(image_id, 2 * MIB), NOBODY)
    await until(lambda: rig.bases.waiters(image_id))
    for ask in (rig.disks.begin, rig.disks.create):
        with pytest.raises(DiskConflictError):
            await ask(KEY, of(image_id, 3 * MIB), NOBODY)
    assert not gate.is_set()
    gate.set()
    assert await settled(rig) is DiskState.READY
    assert (await rig.disks.show(KEY)).disk.virtual_size == 2 * MIB


async def test_deleting_what_was_begun_stops_it(
    rig: Rig, glance: LyingGlance, image_id: ImageId, gate: asyncio.Event
) -> None:
    """A disk that is deleted before it is there never comes, and its download ends."""
    await rig.disks.begin(KEY, of(image_id), NOBODY)
    await until(lambda: glance.calls("data"))
    await rig.disks.delete(KEY)
    await assert_no_trace(rig, KEY)
    assert rig.bases.coming() == frozenset()
    gate.set()
    assert (await rig.disks.create(KEY, of(image_id), NOBODY))[1]


async def test_deleting_twice_is_deleting_once(rig: Rig, image_id: ImageId) -> None:
    """A delete that is repeated, or of an instance that never was, is done."""
    await rig.disks.create(KEY, of(image_id), NOBODY)
    await rig.disks.delete(KEY)
    await assert_no_trace(rig, KEY)
    await rig.disks.delete(KEY)
    await rig.disks.delete_instance(KEY.instance_id)


async def test_disk_is_made_again_after_its_deletion(
    rig: Rig, image_id: ImageId, gate: asyncio.Event
) -> None:
    """A delete that meets a creation stops it, tells who waits, and leaves the name free."""
    creation = asyncio.create_task(rig.disks.create(KEY, of(image_id), NOBODY))
    await until(lambda: rig.bases.waiters(image_id))
    await rig.disks.delete_instance(KEY.instance_id)
    with pytest.raises(DiskConflictError, match="was deleted"):
        await creation
    await assert_no_trace(rig, KEY)
    gate.set()
    view, made = await rig.disks.create(KEY, of(image_id, 2 * MIB), NOBODY)
    assert (view.disk.virtual_size, made) == (2 * MIB, True)


async def test_failure_behind_the_answer_stands_in_the_disk(rig: Rig, glance: LyingGlance) -> None:
    """Who did not wait learns why there is no disk, and may ask again when it is mended."""
    image_id = glance.add(DATA, os_hash_value="0" * 128)
    await rig.disks.begin(KEY, of(image_id), NOBODY)
    assert await settled(rig) is DiskState.FAILED
    assert "Glance says 000000" in str((await rig.disks.show(KEY)).disk.error)
    with pytest.raises(DigestMismatchError):
        await rig.disks.create(KEY, of(image_id), NOBODY)
    good = glance.add(DATA)
    view, begun = await rig.disks.begin(KEY, of(good), NOBODY)
    assert (view.disk.state, view.disk.error, begun) == (DiskState.PENDING, None, True)
    assert await settled(rig) is DiskState.READY


async def test_failure_leaves_no_trace(rig: Rig, image_id: ImageId) -> None:
    """Who waited and was refused finds the name as free as before."""
    with pytest.raises(DiskTooSmallError):
        await rig.disks.create(KEY, of(image_id, 4096), NOBODY)
    await assert_no_trace(rig, KEY)


async def test_one_who_goes_away_leaves_no_trace(
    rig: Rig, image_id: ImageId, gate: asyncio.Event
) -> None:
    """A caller that goes away during a download gives the name back."""
    creation = asyncio.create_task(rig.disks.create(KEY, of(image_id), NOBODY))
    await until(lambda: rig.bases.waiters(image_id))
    creation.cancel()
    await asyncio.wait({creation})
    assert not gate.is_set()
    await assert_no_trace(rig, KEY)


async def test_one_who_goes_away_late_finds_the_disk(
    rig: Rig, image_id: ImageId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that goes away while the file gets its name finds the disk when it comes back."""
    clone_disk = rig.parts.store.clone_disk

    async def leave_and_clone(*what: Any) -> bool:  # noqa: ANN401 -- it is passed on
        creation.cancel()
        return await clone_disk(*what)

    monkeypatch.setattr(rig.parts.store, "clone_disk", leave_and_clone)
    creation = asyncio.create_task(rig.disks.create(KEY, of(image_id), NOBODY))
    await asyncio.wait({creation})
    assert creation.cancelled()
    view, made = await rig.disks.create(KEY, of(image_id), NOBODY)
    assert (view.disk.state, made) == (DiskState.READY, False)


async def test_lost_file_is_made_again(rig: Rig, image_id: ImageId) -> None:
    """A disk whose file somebody removed is made anew, of this or of another specification."""
    view, _ = await rig.disks.create(KEY, of(image_id), NOBODY)
    view.path.unlink()
    view, made = await rig.disks.create(KEY, of(image_id, 2 * MIB), NOBODY)
    assert made
    assert view.path.is_file()


@pytest.mark.parametrize("ask", ["create", "begin"])
async def test_file_of_somebody_else_is_left_alone(rig: Rig, image_id: ImageId, ask: str) -> None:
    """Where a file that is not ours has the disk's name, there is a conflict and no loss."""
    path = rig.layout.disk(KEY, DiskFormat.QCOW2)
    path.parent.mkdir()
    path.write_bytes(b"precious")
    if ask == "create":
        with pytest.raises(DiskConflictError, match="not ours"):
            await rig.disks.create(KEY, of(image_id), NOBODY)
    else:
        await rig.disks.begin(KEY, of(image_id), NOBODY)
        assert await settled(rig) is DiskState.FAILED
        await rig.parts.catalog.remove_disk(KEY, (await rig.disks.show(KEY)).disk.created_at)
    assert path.read_bytes() == b"precious"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_deleting_what_failed_takes_nothing_of_others(rig: Rig, image_id: ImageId) -> None:
    """A disk that was never made has no file, whatever lies under its name."""
    path = rig.layout.disk(KEY, DiskFormat.QCOW2)
    path.parent.mkdir()
    path.write_bytes(b"precious")
    await rig.disks.begin(KEY, of(image_id), NOBODY)
    assert await settled(rig) is DiskState.FAILED
    await rig.disks.delete(KEY)
    with pytest.raises(DiskNotFoundError):
        await rig.disks.show(KEY)
    assert path.read_bytes() == b"precious"


async def test_base_stays_between_the_hit_and_the_intent(
    rig: Rig, glance: LyingGlance, image_id: ImageId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment in which a request has found its base, a lease keeps it from eviction."""
    leased = rig.bases.leased
    refused: list[BaseInUseError] = []

    async def lease_and_evict(image_id: ImageId, caller: Caller, holder: str) -> Ensured:
        ensured = await leased(image_id, caller, holder)
        with pytest.raises(BaseInUseError) as caught:
            await rig.images.evict(image_id, caller)
        refused.append(caught.value)
        return ensured

    monkeypatch.setattr(rig.bases, "leased", lease_and_evict)
    view, made = await rig.disks.create(KEY, of(image_id), NOBODY)
    assert (view.disk.state, made, len(glance.calls("data"))) == (DiskState.READY, True, 1)
    assert [user["kind"] for user in refused[0].users] == ["lease"]
    assert await rig.parts.catalog.leases(rig.parts.now()) == []


async def test_tenant_needs_the_right_to_its_image(
    rig: Rig, glance: LyingGlance, image_id: ImageId
) -> None:
    """Neither a disk that is there nor one that is begun gets around the check."""
    await rig.disks.create(KEY, of(image_id), NOBODY)
    glance.forbids.add("tenant")
    for ask, key in (
        (rig.disks.create, KEY),
        (rig.disks.begin, KEY),
        (rig.disks.create, disk_key(2)),
        (rig.disks.begin, disk_key(2)),
    ):
        with pytest.raises(ImageForbiddenError):
            await ask(key, of(image_id), TENANT)
    assert [str(key) for key in dict(await gathered(rig.disks.instances()))] == [KEY.instance_id]


async def test_adopted_disk_is_judged_by_what_it_is(rig: Rig, image_id: ImageId) -> None:
    """A disk whose request nobody knows any more is what its file says, and nothing else."""
    view, _ = await rig.disks.create(KEY, of(image_id, 2 * MIB), NOBODY)
    now = view.disk.created_at
    await rig.parts.catalog.remove_disk(KEY, now)
    await rig.reconcile.run(now)
    same, made = await rig.disks.create(KEY, of(image_id, 2 * MIB), NOBODY)
    assert (same.path, made) == (view.path, False)
    for other in (
        of(image_id, 3 * MIB),
        of(None, 2 * MIB),
        DiskSpec(image_id=image_id, size=2 * MIB, mode=DiskMode.FULL),
        DiskSpec(image_id=None, size=2 * MIB, filesystem=FileSystem.EXT4),
    ):
        with pytest.raises(DiskConflictError):
            await rig.disks.create(KEY, other, NOBODY)


async def test_what_a_request_found_is_told(rig: Rig, image_id: ImageId) -> None:
    """A disk remembers whether its base was here, for whoever looks at it later."""
    views = [
        (await rig.disks.create(disk_key(number), spec, NOBODY))[0]
        for number, spec in enumerate((of(image_id), of(image_id), of(None, MIB)))
    ]
    found = [CacheResult.MISS, CacheResult.HIT, CacheResult.BLANK]
    assert [view.disk.cache for view in views] == found
    assert [(await rig.disks.show(view.disk.key)).disk.cache for view in views] == found


async def test_refusal_is_for_the_tenant_whose_token_was_used(
    rig: Rig, glance: LyingGlance, image_id: ImageId
) -> None:
    """Two who ask for one disk do not share the refusal of one of them."""
    refusing = asyncio.Event()

    async def refusal(exchange: lying_glance.Exchange) -> web.StreamResponse:
        await refusing.wait()
        return await lying_glance.status(403)(exchange)

    tenant = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
    glance.lie("data", refusal)
    refused = asyncio.create_task(rig.disks.create(KEY, of(image_id), tenant))
    await until(lambda: glance.calls("data"))
    waiting = asyncio.create_task(rig.disks.create(KEY, of(image_id), NOBODY))
    refusing.set()
    with pytest.raises(ImageForbiddenError):
        await refused
    assert (await waiting)[0].disk.state is DiskState.READY
