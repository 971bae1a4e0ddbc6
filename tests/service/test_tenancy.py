"""Disks and instances as a tenant sees them, also while they change."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    DiskConflictError,
    DiskNotFoundError,
    InstanceNotFoundError,
    OperatorOnlyError,
)
from cacheagent.model import Caller, DiskSpec, User, UserKind
from cacheagent.service.outcome import Outcome
from cacheagent.service.status import Status
from cacheagent.service.tenancy import TenantDisks
from cacheagent.service.verify import Verify
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import gathered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from cacheagent.model import ImageId
    from tests.fakes.lying_glance import Exchange, Lie, LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

OPERATOR = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- the fake takes any
ALICE, BOB = Caller(token="alice"), Caller(token="bob")  # noqa: S106 -- as above
ROOT, DATA = disk_key(1, "root"), disk_key(1, "data")


@pytest.fixture
def disks(rig: Rig) -> TenantDisks:
    """Give the disks as the API gives them."""
    return TenantDisks(rig.parts, disks=rig.disks, access=rig.access, creation=rig.creation)


def meanwhile(private: ImageId, work: Callable[[], Awaitable[object]]) -> Lie:
    """Do ``work`` while Glance thinks about a first question; ``private`` is not the tenant's."""
    begun = asyncio.Event()

    async def lie(exchange: Exchange) -> web.StreamResponse:
        if not begun.is_set():
            begun.set()
            await work()
        if private in exchange.request.path:
            return await lying_glance.status(404)(exchange)
        return await lying_glance.body(exchange.data[:1], code=206)(exchange)

    return lie


@pytest.mark.parametrize("what", ["instance", "list", "disk"])
async def test_a_disk_that_is_made_while_glance_is_asked_is_not_shown(
    rig: Rig, glance: LyingGlance, disks: TenantDisks, what: str
) -> None:
    """What a tenant is shown is what Glance was asked about."""
    public, private = glance.add(b"a" * 4096), glance.add(b"b" * 4096)
    await rig.disks.create(ROOT, DiskSpec(image_id=public, size=None), OPERATOR)

    async def make() -> None:
        await rig.disks.create(DATA, DiskSpec(image_id=private, size=None), OPERATOR)

    glance.always("access", meanwhile(private, make))
    try:
        if what == "disk":
            shown = [await disks.show(DATA, TENANT)]
        elif what == "instance":
            shown = list(await disks.instance(ROOT.instance_id, TENANT))
        else:
            found = await gathered(disks.instances(TENANT))
            shown = [each for _, views in found for each in views]
    except (DiskNotFoundError, InstanceNotFoundError):
        shown = []
    assert private not in {view.disk.image_id for view in shown}


@pytest.mark.parametrize("whole", [False, True])
async def test_a_disk_that_is_made_while_glance_is_asked_is_not_removed(
    rig: Rig, glance: LyingGlance, disks: TenantDisks, *, whole: bool
) -> None:
    """What a tenant removes is what Glance was asked about."""
    public, private = glance.add(b"a" * 4096), glance.add(b"b" * 4096)
    await rig.disks.create(ROOT, DiskSpec(image_id=public, size=None), OPERATOR)

    async def make() -> None:
        await rig.disks.create(DATA, DiskSpec(image_id=private, size=None), OPERATOR)

    glance.always("access", meanwhile(private, make))
    removing = (
        disks.delete_instance(ROOT.instance_id, TENANT) if whole else disks.delete(DATA, TENANT)
    )
    with pytest.raises(OperatorOnlyError):
        await removing
    assert (await rig.disks.show(DATA)).path.exists()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("visibility", ["public", "community", None, "private", "shared"])
async def test_a_token_removes_only_what_is_known_to_be_its(
    rig: Rig, glance: LyingGlance, disks: TenantDisks, visibility: str | None, *, whole: bool
) -> None:
    """A right that every project has does not tell whose a disk is, nor does a blank one."""
    image_id = None if visibility is None else glance.add(b"a" * 4096, visibility=visibility)
    size = 1 << 20 if image_id is None else None
    await rig.disks.create(ROOT, DiskSpec(image_id=image_id, size=size), OPERATOR)
    rig.clock.now += 1
    await rig.disks.create(DATA, DiskSpec(image_id=None, size=1 << 20), OPERATOR)
    removing = (
        disks.delete_instance(ROOT.instance_id, TENANT) if whole else disks.delete(ROOT, TENANT)
    )
    if visibility in {"private", "shared"}:
        await removing
        assert await rig.parts.catalog.disk(ROOT) is None
    else:
        with pytest.raises(OperatorOnlyError, match="without"):
            await removing
        assert (await rig.disks.show(ROOT)).path.exists()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("blank", [False, True])
async def test_a_disk_that_a_stranger_adds_proves_nothing_of_those_before(
    rig: Rig, glance: LyingGlance, disks: TenantDisks, *, blank: bool, whole: bool
) -> None:
    """A private image of one's own opens no instance of another; one's own disk may go again."""
    public = None if blank else glance.add(b"a" * 4096, visibility="public")
    private = glance.add(b"b" * 4096, visibility="private")
    await rig.disks.create(ROOT, DiskSpec(image_id=public, size=1 << 20), OPERATOR)
    rig.clock.now += 1
    await disks.create(DATA, DiskSpec(image_id=private, size=None), TENANT)
    removing = (
        disks.delete_instance(ROOT.instance_id, TENANT) if whole else disks.delete(ROOT, TENANT)
    )
    with pytest.raises(OperatorOnlyError, match="without"):
        await removing
    assert (await rig.disks.show(ROOT)).path.exists()
    await disks.delete(DATA, TENANT)
    assert await rig.parts.catalog.disk(DATA) is None


async def test_a_token_may_ask_for_the_end_of_what_is_not_there(disks: TenantDisks) -> None:
    """A scheduler that removes an instance twice hears of no error."""
    await disks.delete_instance(ROOT.instance_id, TENANT)
    await disks.delete(ROOT, TENANT)


async def test_a_token_evicts_no_public_image(rig: Rig, glance: LyingGlance) -> None:
    """What all use is not fetched again and again because one of them wishes so."""
    image_id = glance.add(b"a" * 4096, visibility="public")
    await rig.bases.ensure(image_id, OPERATOR)
    with pytest.raises(OperatorOnlyError):
        await rig.images.evict(image_id, TENANT)
    assert len(await rig.parts.catalog.bases()) == 1


async def test_a_tenant_with_equal_content_does_not_evict_the_base_of_others(
    rig: Rig, glance: LyingGlance
) -> None:
    """Who has the same bytes has no right to what they are to somebody else."""
    hers, his = (glance.add(b"a" * 4096, visibility="private") for _ in range(2))
    for image_id in (hers, his):
        await rig.bases.ensure(image_id, OPERATOR)
    glance.always("access", meanwhile(hers, _nothing))
    with pytest.raises(OperatorOnlyError):
        await rig.images.evict(his, TENANT)
    glance.truth("access")
    await rig.images.evict(his, TENANT)
    assert await rig.parts.catalog.bases() == []


@pytest.fixture
def projects(glance: LyingGlance) -> tuple[ImageId, ImageId]:
    """Add an image of alice and one of bob; neither may have the other's."""
    hers, his = glance.add(b"a" * 4096), glance.add(b"b" * 4096)

    async def rights(exchange: Exchange) -> web.StreamResponse:
        private = his if exchange.request.headers["X-Auth-Token"] == ALICE.token else hers
        refused = f"/{private}/" in exchange.request.path
        return await lying_glance.status(404 if refused else 200)(exchange)

    glance.always("access", rights)
    return hers, his


@pytest.mark.parametrize("way", ["create", "begin"])
@pytest.mark.parametrize("blank", [False, True])
async def test_a_stranger_puts_no_disk_into_an_instance(
    disks: TenantDisks, projects: tuple[ImageId, ImageId], way: str, *, blank: bool
) -> None:
    """It would hide the instance from its owner; the refusal is the same whatever is there."""
    hers, his = projects
    await disks.create(ROOT, DiskSpec(image_id=hers, size=None), ALICE)
    spec = DiskSpec(image_id=None if blank else his, size=1 << 20)
    told = set()
    for key in (ROOT, DATA):
        with pytest.raises(DiskConflictError) as refused:
            await getattr(disks, way)(key, spec, BOB)
        told.add((str(refused.value), str(refused.value.members())))
    assert len(told) == 1
    assert [view.disk.image_id for view in await disks.instance(ROOT.instance_id, ALICE)] == [hers]
    await disks.create(DATA, DiskSpec(image_id=hers, size=None), ALICE)
    await disks.create(disk_key(1, "third"), DiskSpec(image_id=his, size=None), OPERATOR)


@pytest.mark.parametrize("what", ["pin", "unpin", "fetch and pin", "verify"])
async def test_a_tenant_steers_nothing_that_concerns_all(
    rig: Rig, glance: LyingGlance, what: str
) -> None:
    """A right to an image is none to keep it here, to let it go, or to keep the disk busy."""
    image_id = glance.add(b"a" * 4096)
    await rig.images.prefetch(image_id, OPERATOR, pin=what == "unpin", wait=True)
    pins = await rig.parts.catalog.pins()
    verify = Verify(rig.parts, rig.bases, rig.repair, access=rig.access)
    ask: dict[str, Callable[[ImageId, Caller], Awaitable[object]]] = {
        "pin": rig.images.pin,
        "unpin": rig.images.unpin,
        "fetch and pin": partial(rig.images.prefetch, pin=True, wait=True),
        "verify": verify.verify,
    }
    with pytest.raises(OperatorOnlyError):
        await ask[what](image_id, TENANT)
    assert await rig.parts.catalog.pins() == pins


async def _nothing() -> None:
    pass


async def test_a_tenant_is_told_of_a_doubt_and_not_of_whose_file_it_is(rig: Rig) -> None:
    """The operator is: it is for him to do something about it."""
    outcome = Outcome(rig.parts)
    path = Path("/guests/of-somebody/disk")
    outcome.doubts = (User(kind=UserKind.DOUBT, path=path, detail="cannot be read"),)
    status = Status(rig.parts, bases=rig.bases, outcome=outcome, access=rig.access)
    assert [each.path for each in (await status.status(OPERATOR)).doubts] == [path]
    (told,) = (await status.status(TENANT)).doubts
    assert (told.kind, told.path, told.detail) == (UserKind.DOUBT, None, None)
