"""Bases that are lost or damaged: out of use at once, fetched anew where somebody needs them."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import CatalogError, QemuImgError
from cacheagent.model import BaseState, Caller, DiskSpec
from cacheagent.policy.eviction import Reason
from cacheagent.service.repair import Repair
from cacheagent.sync.backoff import Backoff
from tests.fakes import lying_glance
from tests.fakes.values import NOW, disk_key
from tests.needs import require_programs
from tests.service.rig import Rig, until

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Base, ImageId
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
DATA = os.urandom(MIB)
NOBODY = Caller()
KEY = disk_key(1)


@pytest.fixture
def image_id(glance: LyingGlance) -> ImageId:
    """Have an image."""
    require_programs("qemu-img")
    return glance.add(DATA)


@pytest.fixture
async def base(rig: Rig, image_id: ImageId) -> Base:
    """Bring its base in."""
    return (await rig.bases.ensure(image_id, NOBODY)).base


@pytest.fixture
def gate() -> asyncio.Event:
    """Hold back every attempt but the first until the test opens it."""
    return asyncio.Event()


@pytest.fixture
def repair(rig: Rig, gate: asyncio.Event) -> Repair:
    """Give what is tested."""

    async def pause(_seconds: float) -> None:
        await gate.wait()

    return Repair(rig.parts, rig.bases, rig.use, retry=Backoff(pause=pause))


def path_of(rig: Rig, base: Base) -> Path:
    """Give the file of a base."""
    return rig.layout.base(base.base_id, base.format)


def cut(path: Path) -> None:
    """Make a base shorter, as nobody should."""
    path.chmod(0o600)
    os.truncate(path, 1000)


async def use(rig: Rig, image_id: ImageId) -> None:
    """Make a disk from the base."""
    await rig.disks.create(KEY, DiskSpec(image_id=image_id, size=None), NOBODY)


async def state_of(rig: Rig, base: Base) -> BaseState | None:
    """Look at the row of a base."""
    row = await rig.parts.catalog.base(base.base_id)
    return None if row is None else row.state


def in_quarantine(rig: Rig) -> list[str]:
    """Name what lies in quarantine."""
    return sorted(path.name for path in rig.layout.quarantine.iterdir())


async def test_lost_base_that_nobody_uses_is_forgotten(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """Without a file and without a user there is nothing to know of it."""
    path_of(rig, base).unlink()
    await repair.lost(base)
    assert await rig.parts.catalog.image(image_id) is None
    assert list(rig.layout.bases.iterdir()) == []


async def test_lost_base_that_a_disk_needs_is_fetched_anew(
    rig: Rig, glance: LyingGlance, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """The disk has its base again without anybody asking for it."""
    await use(rig, image_id)
    path_of(rig, base).unlink()
    await repair.lost(base)
    await until(path_of(rig, base).exists)
    assert path_of(rig, base).read_bytes() == DATA
    assert len(glance.calls("data")) == 2


async def test_base_that_is_there_after_all_is_left_alone(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """A false alarm changes nothing."""
    await repair.lost(base)
    assert (await rig.bases.ensure(image_id, NOBODY)).base == base
    assert rig.metric("scrub_failures_total") == 0


async def test_base_that_was_cut_goes_to_quarantine(rig: Rig, repair: Repair, base: Base) -> None:
    """Unused, it stays there with its manifest until it is evicted, and counts as cache."""
    cut(path_of(rig, base))
    await repair.lost(base)
    assert await state_of(rig, base) is BaseState.QUARANTINED
    name = path_of(rig, base).name
    assert in_quarantine(rig) == [name, f"{name}.json"]
    assert list(rig.layout.bases.iterdir()) == []
    assert await rig.parts.store.cache_bytes() > 0
    assert rig.metric("scrub_failures_total") == 1


async def test_base_that_was_cut_is_not_handed_out(
    rig: Rig, glance: LyingGlance, base: Base, image_id: ImageId
) -> None:
    """Whoever asks before anybody noticed gets the whole image all the same."""
    cut(path_of(rig, base))
    await rig.bases.ensure(image_id, NOBODY)
    assert path_of(rig, base).read_bytes() == DATA
    assert len(glance.calls("data")) == 2


async def test_damaged_base_that_is_used_comes_anew_and_leaves_quarantine(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """What a disk needs is fetched at once; the damaged copy is then of no use."""
    await use(rig, image_id)
    await repair.damaged(base, "a test says so")
    assert repair.fetching() == {base.base_id}
    await until(lambda: not repair.fetching())
    assert in_quarantine(rig) == []
    assert path_of(rig, base).read_bytes() == DATA
    assert await state_of(rig, base) is BaseState.READY


async def test_pinned_base_comes_anew(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """What an operator wants to have here is here again."""
    await rig.parts.catalog.pin(image_id, NOW)
    await repair.damaged(base, "a test says so")
    await until(path_of(rig, base).exists)


async def test_next_request_fetches_what_is_in_quarantine(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """Nobody gets a damaged base; who asks for the image gets a new one."""
    await repair.damaged(base, "a test says so")
    ensured = await rig.bases.ensure(image_id, NOBODY)
    assert ensured.base.state is BaseState.READY
    assert path_of(rig, base).read_bytes() == DATA
    assert in_quarantine(rig) == []


async def test_another_base_of_its_name_is_not_blamed(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """One that came while the damaged one was looked at stays in use."""
    rig.clock.now += 60
    await repair.damaged(base, "a test says so")
    await rig.bases.ensure(image_id, NOBODY)
    await repair.damaged(base, "a test says so once more")
    assert await state_of(rig, base) is BaseState.READY


async def test_second_image_is_asked_for_where_the_first_has_gone(
    rig: Rig, glance: LyingGlance, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """Any image of the same content brings the base back."""
    await use(rig, image_id)
    other = glance.add(DATA)
    await rig.bases.ensure(other, NOBODY)
    del glance.images[image_id]
    await repair.damaged(base, "a test says so")
    await until(path_of(rig, base).exists)
    assert [seen.image_id for seen in glance.calls("data")] == [image_id, other]


async def test_fetching_is_tried_until_it_works(
    rig: Rig,
    glance: LyingGlance,
    repair: Repair,
    base: Base,
    image_id: ImageId,
    gate: asyncio.Event,
) -> None:
    """Glance may be away at first; the row stays, so that users show meanwhile."""
    await use(rig, image_id)
    glance.lie("show", lying_glance.status(503))
    await repair.damaged(base, "a test says so")
    await until(lambda: len(glance.calls("show")) == 2)
    assert await state_of(rig, base) is BaseState.QUARANTINED
    assert KEY in [user.key for user in await rig.use.proved(base)]
    gate.set()
    await until(path_of(rig, base).exists)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("ensure", OSError(errno.EMFILE, "too many")),
        ("ensure", QemuImgError("stopped")),
        ("look", CatalogError("broken")),
    ],
)
async def test_fault_of_this_host_does_not_end_the_trying(
    rig: Rig, image_id: ImageId, monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    """What fails once for want of descriptors, or in a program, leaves no disk without its base."""
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    await use(rig, image_id)
    repair = Repair(rig.parts, rig.bases, rig.use, retry=Backoff(pause=asyncio.sleep, first=0.0))
    owner, name = (rig.bases, "ensure") if what == "ensure" else (rig.parts.catalog, "images_of")
    real, errors = getattr(owner, name), [error]

    async def fail_once(*arguments: object) -> object:
        if errors:
            raise errors.pop()
        return await real(*arguments)

    monkeypatch.setattr(owner, name, fail_once)
    await repair.damaged(base, "a test says so")
    await until(path_of(rig, base).exists)


async def test_fetching_ends_with_the_last_user(
    rig: Rig,
    glance: LyingGlance,
    repair: Repair,
    base: Base,
    image_id: ImageId,
    gate: asyncio.Event,
) -> None:
    """A base that nobody needs any more is not asked for any more."""
    await use(rig, image_id)
    glance.always("show", lying_glance.status(503))
    await repair.damaged(base, "a test says so")
    await until(lambda: len(glance.calls("show")) == 2)
    await rig.disks.delete(KEY)
    gate.set()
    await until(lambda: not repair.fetching())
    assert len(glance.calls("show")) == 2
    assert await state_of(rig, base) is BaseState.QUARANTINED


async def test_what_no_image_brings_back_is_not_asked_for_for_ever(
    rig: Rig,
    glance: LyingGlance,
    repair: Repair,
    base: Base,
    image_id: ImageId,
    gate: asyncio.Event,
) -> None:
    """Where the id stands for other bytes by now, nobody has those of the base."""
    await use(rig, image_id)
    glance.add(os.urandom(MIB), id=image_id)
    gate.set()
    await repair.damaged(base, "a test says so")
    await until(lambda: not repair.fetching())
    assert len(glance.calls("data")) == 2
    assert await state_of(rig, base) is BaseState.QUARANTINED
    assert path_of(rig, base).name in in_quarantine(rig)


async def test_start_goes_on_with_what_was_not_fetched(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """A crash between quarantine and download does not leave a disk without its base."""
    await use(rig, image_id)
    await rig.parts.catalog.set_base_state(base.base_id, BaseState.QUARANTINED)
    await rig.parts.store.quarantine_base(base.base_id, base.format)
    await repair.resume()
    await until(path_of(rig, base).exists)


async def test_damaged_base_that_is_used_is_not_evicted(
    rig: Rig, glance: LyingGlance, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """While it cannot be fetched anew, its disk keeps the row."""
    await use(rig, image_id)
    glance.always("show", lying_glance.status(503))
    await repair.damaged(base, "a test says so")
    done = await rig.evictions.run("interval")
    assert done.evicted == ()
    assert await state_of(rig, base) is BaseState.QUARANTINED


async def test_damaged_base_that_nobody_uses_is_evicted(
    rig: Rig, repair: Repair, base: Base, image_id: ImageId
) -> None:
    """The next pass of the pruner takes it away, file and row, however young it is."""
    await repair.damaged(base, "a test says so")
    done = await rig.evictions.run("interval")
    assert [each.reason for each in done.evicted] == [Reason.DAMAGED]
    assert await rig.parts.catalog.image(image_id) is None
    assert in_quarantine(rig) == []
