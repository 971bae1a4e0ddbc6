"""What is used never goes: each way to use a base, in a pass that wants to evict it.

Beside the base in question there is always another one that nobody uses, as old as it. A pass
that spares the one takes the other, unless a doubt is about both.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.model import Base, Caller, DiskSpec, ImageId, Lease, UserKind
from cacheagent.policy.eviction import Demand, DemandKind, Reason
from tests.fakes.guest import running_qemu
from tests.fakes.values import disk_key
from tests.service.rig import Rig, in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.model import User
    from cacheagent.service.bases import Ensured
    from cacheagent.service.outcome import Pass
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DAY = 86_400
NOBODY = Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A cache of two bases, both long idle, and a folder where others keep their overlays."""

    rig: Rig
    image_id: ImageId
    kept: Base
    other: Base
    scanned: Path

    @property
    def path(self) -> Path:
        """The file of the base that is to stay."""
        return self.rig.layout.base(self.kept.base_id, self.kept.format)

    async def prune(self) -> Pass:
        """Make a pass that is to free whatever may go."""
        return await self.rig.evictions.run("operator", Demand(DemandKind.OPERATOR, 1 << 50))

    async def spares(self, *kinds: UserKind) -> None:
        """Check that a pass takes the other base, and spares this one for users of these kinds."""
        done = await self.prune()
        assert [each.base.base_id for each in done.evicted] == [self.other.base_id]
        (stay,) = done.plan.stay
        assert (stay.base.base_id, stay.rules) == (self.kept.base_id, ())
        assert stay.wanted in {Reason.MAX_IDLE, Reason.OPERATOR}
        assert sorted(user.kind for user in stay.users) == sorted(kinds)
        self.is_whole()

    async def spares_all(self, kind: UserKind) -> tuple[User, ...]:
        """Check that a pass takes neither base, since there is a doubt about both."""
        done = await self.prune()
        assert done.evicted == ()
        assert [[user.kind for user in stay.users] for stay in done.plan.stay] == [[kind]] * 2
        assert self.rig.metric("eviction_skipped_total", reason=kind.value) == 2
        self.is_whole()
        return done.plan.stay[0].users

    def is_whole(self) -> None:
        """Check that the base lies where it did, as it came."""
        assert self.path.read_bytes() == b"k" * MIB


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """Give the pattern-free name under which the agent looks for the socket of a guest."""
    return tmp_path / "guest.sock"


@pytest.fixture
async def cache(tmp_path: Path, glance: LyingGlance, sockets: Path) -> AsyncIterator[Cache]:
    """Bring both bases in, and let them lie idle for longer than ``max_idle``."""
    scanned = tmp_path / "scanned"
    scanned.mkdir()
    (scanned / "somebody's").touch()
    sections: dict[str, dict[str, Any]] = {
        "storage": {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(scanned)]},
        "qemu": {"qmp_sockets": [str(sockets)]},
        "eviction": {"min_free": 0, "min_age": 0, "max_idle": "7d", "high_watermark": 100},
    }
    async with in_a_task(rig_on(tmp_path, glance.url, **sections)) as rig:
        image_id = glance.add(b"k" * MIB)
        kept = (await rig.bases.ensure(image_id, NOBODY)).base
        other = (await rig.bases.ensure(glance.add(b"o" * MIB), NOBODY)).base
        rig.clock.now += 8 * DAY
        yield Cache(rig=rig, image_id=image_id, kept=kept, other=other, scanned=scanned)


async def overlay(path: Path, backing: str, backing_format: str = "raw") -> Path:
    """Make an overlay by hand, as any program may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", backing]
    await asyncio.to_thread(subprocess.run, [*command, str(path)], check=True)
    return path


async def test_both_would_go(cache: Cache) -> None:
    """Nothing but what the other tests do keeps the base."""
    assert len((await cache.prune()).evicted) == 2
    assert not cache.path.exists()


async def test_overlay_made_by_hand(cache: Cache) -> None:
    """An overlay in the instances folder that the agent did not make keeps its base."""
    await overlay(cache.rig.layout.instances_dir / "by-hand" / "disk.qcow2", str(cache.path))
    await cache.spares(UserKind.OVERLAY)


async def test_overlay_in_a_scan_folder(cache: Cache) -> None:
    """An overlay in a folder of another manager keeps its base."""
    await overlay(cache.scanned / "guests" / "a" / "disk", str(cache.path))
    await cache.spares(UserKind.OVERLAY)


async def test_chain_two_deep(cache: Cache, tmp_path: Path) -> None:
    """A base stays for an overlay of an overlay, even where the one between lies elsewhere."""
    between = await overlay(tmp_path / "elsewhere" / "snapshot.qcow2", str(cache.path))
    await overlay(cache.scanned / "disk.qcow2", str(between), "qcow2")
    await cache.spares(UserKind.OVERLAY)


async def test_relative_backing_name(cache: Cache) -> None:
    """A name that is relative to the overlay's folder is followed."""
    relative = os.path.relpath(cache.path, cache.scanned)
    await overlay(cache.scanned / "disk.qcow2", relative)
    await cache.spares(UserKind.OVERLAY)


async def test_json_backing_name(cache: Cache) -> None:
    """A name written as JSON is read."""
    name = "json:" + json.dumps({"driver": "raw", "file.filename": str(cache.path)})
    await overlay(cache.scanned / "disk.qcow2", name)
    await cache.spares(UserKind.OVERLAY)


@pytest.mark.parametrize("folder", ["", "as/a/container/sees/it"])
async def test_name_by_another_mount(cache: Cache, tmp_path: Path, folder: str) -> None:
    """An overlay made where our folder is mounted elsewhere names the base by a path of its own."""
    disk = await overlay(cache.scanned / "disk.qcow2", str(cache.path))
    backing = str(tmp_path / folder / cache.path.name)
    command = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing]
    await asyncio.to_thread(subprocess.run, [*command, str(disk)], check=True)
    await cache.spares(UserKind.OVERLAY)


async def test_symbolic_link(cache: Cache, tmp_path: Path) -> None:
    """A name that leads to the base by a link is followed."""
    (tmp_path / "link").symlink_to(cache.path)
    await overlay(cache.scanned / "disk.qcow2", str(tmp_path / "link"))
    await cache.spares(UserKind.OVERLAY)


async def test_open_in_a_qemu_whose_overlay_was_unlinked(cache: Cache, tmp_path: Path) -> None:
    """A guest that runs on although its disk was removed keeps the base, by QEMU's own locks."""
    disk = await overlay(tmp_path / "disk.qcow2", str(cache.path))
    async with running_qemu(disk):
        disk.unlink()
        await cache.spares(UserKind.QEMU)


async def test_known_only_by_qmp(cache: Cache, tmp_path: Path, sockets: Path) -> None:
    """A guest whose disk was removed, and whose QEMU takes no locks, says itself what it uses."""
    disk = await overlay(tmp_path / "disk.qcow2", str(cache.path))
    async with running_qemu(disk, locking=False) as socket:
        sockets.symlink_to(socket)
        disk.unlink()
        await cache.spares(UserKind.GUEST)
    assert cache.rig.metric("qmp_guests", state="reachable") == 1


async def test_guest_that_does_not_answer(cache: Cache, sockets: Path) -> None:
    """A QMP socket that somebody listens on and nobody answers may be that of any user."""

    def noise(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"?\n")
        writer.close()

    async with await asyncio.start_unix_server(noise, sockets):
        (doubt,) = await cache.spares_all(UserKind.DOUBT)
    assert doubt.path == sockets


async def test_hard_link(cache: Cache, tmp_path: Path) -> None:
    """A second name for the file of a base means that somebody wants it."""
    (tmp_path / "mine").hardlink_to(cache.path)
    await cache.spares(UserKind.LINK)


async def test_pinned(cache: Cache) -> None:
    """What an operator pinned stays."""
    await cache.rig.images.pin(cache.image_id, NOBODY)
    await cache.spares(UserKind.PIN)


async def test_leased(cache: Cache) -> None:
    """What somebody works with stays until the lease ends, and no longer."""
    rig = cache.rig
    until = rig.parts.now() + timedelta(seconds=60)
    lease = Lease(lease_id="1", base_id=cache.kept.base_id, holder="a test", expires_at=until)
    assert await rig.parts.catalog.lease(lease)
    await cache.spares(UserKind.LEASE)
    rig.clock.now += 61
    assert [each.base.base_id for each in (await cache.prune()).evicted] == [cache.kept.base_id]


@pytest.mark.allow_blocking
async def test_request_between_lookup_and_clone(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that has found its base, and has not cloned yet, gets its disk from it."""
    rig = cache.rig
    leased = rig.bases.leased

    async def lease_and_prune(image_id: ImageId, caller: Caller, holder: str) -> Ensured:
        ensured = await leased(image_id, caller, holder)
        await cache.spares(UserKind.LEASE)
        return ensured

    monkeypatch.setattr(rig.bases, "leased", lease_and_prune)
    view, made = await rig.disks.create(
        disk_key(1), DiskSpec(image_id=cache.image_id, size=None), NOBODY
    )
    assert (made, view.base_path) == (True, cache.path)


async def test_request_that_is_about_to_look_up(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that comes while a pass runs holds the base before the catalog knows of it."""
    rig = cache.rig
    lease_image = rig.parts.catalog.lease_image
    passes: list[Pass] = []

    async def prune_and_lease(*arguments: object, **named: object) -> object:
        passes.append(await cache.prune())
        return await lease_image(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.parts.catalog, "lease_image", prune_and_lease)
    assert (await rig.bases.ensure(cache.image_id, NOBODY)).base == cache.kept
    (stay,) = passes[0].plan.stay
    assert [user.kind for user in stay.users] == [UserKind.WAITER]


async def test_scan_folder_is_missing(cache: Cache) -> None:
    """Without the folder nobody knows which overlays lie in it: everything stays."""
    cache.scanned.rename(cache.scanned.with_name("away"))
    (doubt,) = await cache.spares_all(UserKind.DOUBT)
    assert doubt.path == cache.scanned


async def test_scan_folder_cannot_be_read(cache: Cache) -> None:
    """What lies behind a folder that cannot be entered may be an overlay of any base."""
    # Also for root, who may read whatever has rights.
    (cache.scanned / "circle").symlink_to(cache.scanned / "circle")
    (doubt,) = await cache.spares_all(UserKind.DOUBT)
    assert doubt.path == cache.scanned / "circle"


async def test_scan_folder_is_not_mounted(cache: Cache) -> None:
    """An empty folder is how a mount point looks without its file system."""
    (cache.scanned / "somebody's").unlink()
    (doubt,) = await cache.spares_all(UserKind.DOUBT)
    assert doubt.path == cache.scanned


async def test_garbage_that_names_the_base(cache: Cache) -> None:
    """A broken qcow2 keeps the base that it names, and the pass goes on for the others."""
    broken = await overlay(cache.scanned / "broken.qcow2", str(cache.path))
    with broken.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 8)
    await cache.spares(UserKind.OVERLAY)


async def test_garbage_that_names_nothing(cache: Cache) -> None:
    """A file that QEMU could not open either stops no pass."""
    (cache.scanned / "noise.qcow2").write_bytes(b"QFI\xfb" + os.urandom(4096))
    await overlay(cache.scanned / "disk.qcow2", str(cache.path))
    await cache.spares(UserKind.OVERLAY)


@pytest.mark.allow_blocking
async def test_overlay_that_comes_in_the_last_moment(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay made by hand between the proof and the rename gets its base back."""
    rig = cache.rig
    trash_base = rig.parts.store.trash_base
    disk = cache.scanned / "late.qcow2"

    async def overlay_and_trash(*base: object) -> None:
        if not disk.exists():
            await overlay(disk, str(cache.path))
        await trash_base(*base)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.parts.store, "trash_base", overlay_and_trash)
    done = await cache.prune()
    assert [each.base.base_id for each in done.evicted] == [cache.other.base_id]
    (skipped,) = done.skipped
    assert [user.path for user in skipped.users] == [disk]
    cache.is_whole()
    assert (await rig.bases.ensure(cache.image_id, NOBODY)).base.base_id == cache.kept.base_id
    assert list(rig.layout.trash.iterdir()) == []
