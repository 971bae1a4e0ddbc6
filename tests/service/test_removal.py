"""A base goes in steps: whatever fails between them leaves it whole, or gone."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import files
from cacheagent.model import BaseState, Caller, DiskSpec, UserKind
from cacheagent.policy.eviction import Demand, DemandKind
from tests.fakes.values import disk_key
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from cacheagent.model import Base, BaseId, ImageId, User
    from cacheagent.service.outcome import Pass
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DAY = 86_400
NOBODY = Caller()
BOUNDS = {"min_free": 0, "min_age": "10m", "max_idle": "7d", "high_watermark": 100}


@pytest.fixture
async def idle_rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire an agent whose bases may go as soon as they are ten minutes old."""
    async with in_a_task(rig_on(tmp_path, glance.url, eviction=BOUNDS)) as wired:
        yield wired


async def idle(rig: Rig, glance: LyingGlance, data: bytes = b"k" * MIB) -> tuple[ImageId, Base]:
    """Have a base that nobody has used for a day."""
    image_id = glance.add(data)
    base = (await rig.bases.ensure(image_id, NOBODY)).base
    rig.clock.now += DAY
    return image_id, base


async def prune(rig: Rig) -> Pass:
    """Make a pass that is to free whatever may go."""
    return await rig.evictions.run("operator", Demand(DemandKind.OPERATOR, 1 << 50))


async def assert_whole(rig: Rig, base: Base) -> None:
    """Check that the base can be handed out, with all that belongs to it, and nothing is left."""
    row = await rig.parts.catalog.base(base.base_id)
    assert row is not None
    assert row.state is BaseState.READY
    found = await rig.parts.store.listing()
    assert found.bases is not None
    assert sorted(found.bases.files) == sorted(
        path.name
        for path in (
            rig.layout.base(base.base_id, base.format),
            rig.layout.manifest(base.base_id, base.format),
        )
    )
    assert found.trash is not None
    assert not found.trash.files


@pytest.mark.allow_blocking  # a traceback is written by another library here
@pytest.mark.parametrize("number", [1, 2])
async def test_a_rename_that_fails_is_undone(
    idle_rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A device that fails between the renames leaves the base where it can be used."""
    _, base = await idle(idle_rig, glance)
    monkeypatch.setattr(files, "move", failing_once(files.move, number, "trash"))
    done = await prune(idle_rig)
    (skipped,) = done.skipped
    assert [user.kind for user in skipped.users] == [UserKind.DOUBT]
    await assert_whole(idle_rig, base)


def failing_once(
    move: Callable[[Path, Path], None], number: int, folder: str
) -> Callable[[Path, Path], None]:
    """Let every move into the folder from this number on fail."""
    seen = 0

    def moving(source: Path, target: Path) -> None:
        nonlocal seen
        seen += target.parent.name == folder
        if target.parent.name == folder and seen >= number:
            raise OSError(errno.EIO, "the device is broken")
        move(source, target)

    return moving


@pytest.mark.allow_blocking  # as above
async def test_a_last_look_that_fails_puts_the_base_back(
    idle_rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made an overlay in the last moment finds the base, though nobody could look."""
    _, base = await idle(idle_rig, glance)
    outside = idle_rig.use.outside

    async def looking(found: Mapping[BaseId, Path]) -> Mapping[BaseId, tuple[User, ...]]:
        if any(path.parent == idle_rig.layout.trash for path in found.values()):
            raise OSError(errno.EIO, "nobody can look")
        return await outside(found)

    monkeypatch.setattr(idle_rig.use, "outside", looking)
    done = await prune(idle_rig)
    (skipped,) = done.skipped
    assert [user.kind for user in skipped.users] == [UserKind.DOUBT]
    await assert_whole(idle_rig, base)


async def test_a_pin_in_the_last_moment_keeps_the_base(
    idle_rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was told that the image is pinned finds its base kept."""
    image_id, base = await idle(idle_rig, glance)
    trash_base = idle_rig.parts.store.trash_base

    async def pin_and_trash(*args: object) -> None:
        await idle_rig.images.pin(image_id, NOBODY)
        await trash_base(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(idle_rig.parts.store, "trash_base", pin_and_trash)
    done = await prune(idle_rig)
    assert done.evicted == ()
    await assert_whole(idle_rig, base)


async def test_a_base_used_since_the_plan_is_as_young_as_that(
    idle_rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that came and went between plan and proof gives the base its ``min_age`` anew."""
    image_id, base = await idle(idle_rig, glance)
    users = idle_rig.use.users
    calls = 0

    async def using(bases: Sequence[Base]) -> Mapping[BaseId, tuple[User, ...]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            await idle_rig.disks.create(disk_key(1), DiskSpec(image_id=image_id, size=None), NOBODY)
            await idle_rig.disks.delete(disk_key(1))
        return await users(bases)

    monkeypatch.setattr(idle_rig.use, "users", using)
    done = await prune(idle_rig)
    assert done.evicted == ()
    await assert_whole(idle_rig, base)
