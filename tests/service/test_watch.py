"""What follows from what happens to files, with the kernel's own events."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial, partialmethod
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.inotify import FileEvent, FileEventKind, Tree, Watcher
from cacheagent.errors import CatalogError
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec, DiskState, ImageId
from cacheagent.policy.eviction import Reason
from cacheagent.policy.layout import unfinished
from cacheagent.service import watch as watching
from cacheagent.service.atonce import AtOnce
from cacheagent.service.watch import Hooks, Watch
from cacheagent.service.watched import Watched
from tests.fakes import lying_glance
from tests.fakes.values import disk_key
from tests.service.rig import Rig, in_a_task, rig_on, until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from cacheagent.model import Base, BaseId, Disk, DiskKey, DiskView, InstanceId
    from cacheagent.sync.lane import Ended
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

DATA = b"data" * (1 << 18)
NOBODY = Caller()
KEY, OTHER = disk_key(1), disk_key(2)


@dataclass
class World:
    """A watched agent, and what it asked for. ``shelf`` is a scan folder."""

    rig: Rig
    watcher: Watcher
    watch: Watch
    image_id: ImageId
    shelf: Path
    asked: list[str]
    events: AsyncIterator[Sequence[FileEvent]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin to listen."""
        self.events = self.watcher.events()

    async def disk(self, key: DiskKey = KEY) -> DiskView:
        """Make a disk."""
        view, _ = await self.rig.disks.create(key, of(self.image_id), NOBODY)
        return view

    async def base(self) -> tuple[Base, Path]:
        """Bring the base; give it and its file."""
        base = (await self.rig.bases.ensure(self.image_id, NOBODY)).base
        return base, self.rig.layout.base(base.base_id, base.format)

    async def settle(self) -> bool:
        """Take all events of what happened until now; tell whether the watches are any good."""
        mark = self.rig.layout.bases / "mark"
        await asyncio.to_thread(mark.mkdir)
        await asyncio.to_thread(mark.rmdir)
        good = True
        seen = FileEvent(FileEventKind.DELETED, mark, is_folder=True)
        async for events in self.events:
            good = await self.watch.take(self.watcher, events) and good
            if seen in events:
                break
        return good

    async def known(self) -> list[DiskKey]:
        """Name the disks that the catalog knows."""
        return [disk.key for disk in await self.rig.parts.catalog.disks()]


@pytest.fixture
async def world(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[World]:
    """Watch an agent without disks."""
    shelf = tmp_path / "shelf"
    (shelf / "deep" / "deeper").mkdir(parents=True)
    storage = {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(shelf)]}
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(
            in_a_task(rig_on(tmp_path, glance.url, storage=storage))
        )
        watcher = await stack.enter_async_context(await Watcher.open())
        asked: list[str] = []

        async def note(what: str, base: Base) -> None:
            asked.append(f"{what} {base.base_id}")

        async def damaged(base: Base, why: str) -> None:
            asked.append(f"damaged {base.base_id}: {why}")

        hooks = Hooks(
            reconcile=partial(asked.append, "reconcile"),
            prune=asked.append,
            lost=partial(note, "lost"),
            verify=partial(note, "verify"),
            damaged=damaged,
        )
        watch = Watch(rig.parts, creation=rig.creation, watched=Watched(rig.parts), hooks=hooks)
        await watch.begin(watcher)
        yield World(rig, watcher, watch, glance.add(DATA), shelf, asked)


def of(image_id: ImageId) -> DiskSpec:
    """Ask for an overlay of the image."""
    return DiskSpec(image_id=image_id, size=None)


def _all_looked() -> bool:
    return "a look at a disk" not in {task.get_name() for task in asyncio.all_tasks()}


def _unlink(path: Path, _: Path) -> None:
    path.unlink()


def _move(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere / path.name)


def _remove_folder(path: Path, _: Path) -> None:
    shutil.rmtree(path.parent)


def _move_folder(path: Path, elsewhere: Path) -> None:
    path.parent.rename(elsewhere / "moved")


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("take_away", [_unlink, _move, _remove_folder, _move_folder])
async def test_disk_that_is_taken_away_is_noticed(
    world: World, tmp_path: Path, take_away: Callable[[Path, Path], None], others: int
) -> None:
    """However it goes, and be it the last: the row goes, and the rule of space is run again."""
    view = await world.disk()
    for _ in range(others):
        await world.disk(OTHER)
    await world.settle()
    world.rig.clock.now += 100
    take_away(view.path, tmp_path)
    assert await world.settle()
    assert await world.known() == [OTHER] * others
    (base,) = await world.rig.parts.catalog.bases()
    assert base.last_used_at == world.rig.clock.time()
    assert set(world.asked) == {"deletion"}


async def test_own_deeds_come_to_nothing(world: World) -> None:
    """Publish, template, disks made, refused and removed, eviction: nobody is bothered."""
    await world.disk()
    await world.disk(OTHER)
    await world.settle()
    await world.rig.disks.delete(KEY)
    await world.settle()
    await world.disk()
    await world.rig.disks.delete(KEY)
    await world.rig.disks.delete(OTHER)
    await world.settle()
    base, path = await world.base()
    assert not await world.rig.evictions.evict(base, Reason.OPERATOR)
    assert await world.settle()
    assert not path.exists()
    await until(_all_looked)
    assert world.asked == []


async def test_new_folder_is_watched_without_a_gap(world: World) -> None:
    """An overlay that came with its folder is known, and so is its end; the same further down."""
    folder = world.rig.layout.instance(KEY.instance_id)
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "root.qcow2", folder / "deep" / "disk"):
        path.touch()
    await world.settle()
    # That of the first file came as an event as well, or as none.
    assert set(world.asked) == {"reconcile"}
    world.asked.clear()
    (folder / "deep" / "disk").unlink()
    await world.settle()
    assert world.asked == ["deletion"]


async def test_disk_that_went_before_its_folder_was_watched_is_noticed(world: World) -> None:
    """Nothing tells of it but the look behind the watch."""
    view = await world.disk()
    await world.disk(OTHER)
    view.path.unlink()
    event = FileEvent(FileEventKind.CREATED, view.path.parent, is_folder=True)
    await world.watch.take(world.watcher, [event])
    assert await world.known() == [OTHER]


@pytest.mark.parametrize("at_once", [False, True])
async def test_disk_that_goes_in_the_moment_it_is_made_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """Between the file and its row lies an event that has to wait for the row."""
    await world.disk(OTHER)
    catalog, loop = world.rig.parts.catalog, asyncio.get_running_loop()
    finish_disk, finish_disks = catalog.finish_disk, catalog.finish_disks
    monkeypatch.setattr(AtOnce, "suits", staticmethod(lambda _spec: at_once))

    async def lose(key: DiskKey, **facts: object) -> Disk:
        await asyncio.to_thread(world.rig.layout.disk(key, DiskFormat.QCOW2).unlink)
        await world.settle()
        return await finish_disk(key, **facts)  # type: ignore[arg-type]

    def lose_all(disks: Sequence[Disk], now: datetime) -> list[Ended]:
        for disk in disks:
            world.rig.layout.disk(disk.key, DiskFormat.QCOW2).unlink()
        asyncio.run_coroutine_threadsafe(world.settle(), loop).result(30)
        return finish_disks(disks, now)

    monkeypatch.setattr(catalog, "finish_disk", lose)
    monkeypatch.setattr(catalog, "finish_disks", lose_all)
    await world.disk()
    await until(lambda: "deletion" in world.asked)
    assert await world.known() == [OTHER]


async def test_disk_whose_base_still_comes_holds_up_nothing(
    world: World, glance: LyingGlance
) -> None:
    """A file of its name that goes meanwhile is looked at when the disk is there."""
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    await world.rig.disks.begin(KEY, of(world.image_id), NOBODY)
    path = world.rig.layout.disk(KEY, DiskFormat.QCOW2)
    path.parent.mkdir()
    for _ in range(2):
        path.touch()
        path.unlink()
    assert await world.settle()
    gate.set()
    view = await world.disk()
    assert view.disk.state is DiskState.READY
    await until(_all_looked)
    assert await world.known() == [KEY]


async def test_overlay_of_somebody_else_that_goes_runs_the_rule_of_space(
    world: World, tmp_path: Path
) -> None:
    """In a scan folder any file may be an overlay, and so may those in a folder that moves."""
    (world.shelf / "deep" / "deeper" / "vm.img").touch()
    (world.shelf / "deep" / "deeper" / "vm.img").unlink()
    await world.settle()
    assert world.asked == ["deletion"]
    (world.shelf / "deep").rename(tmp_path / "deep")
    await world.settle()
    assert world.asked == ["deletion"] * 2
    (tmp_path / "deep" / "deeper" / "not watched").touch()
    (tmp_path / "deep" / "deeper" / "not watched").unlink()
    await world.settle()
    (tmp_path / "deep").rename(world.shelf / "again")
    await world.settle()
    assert world.asked == ["deletion"] * 2
    (world.shelf / "again" / "deeper" / "other").touch()
    (world.shelf / "again" / "deeper" / "other").rename(tmp_path / "other")
    await world.settle()
    assert world.asked == ["deletion"] * 3


async def test_disk_that_somebody_else_made_is_taken_in(world: World, tmp_path: Path) -> None:
    """A file with a disk's name that no row knows has the reconciler look, once it is closed."""
    await world.disk()
    made = tmp_path / "made"
    made.touch()
    folder = world.rig.layout.instance(KEY.instance_id)
    made.rename(folder / "data.qcow2")
    (folder / "notes.txt").touch()
    unfinished(folder / "swap.raw").touch()
    unfinished(folder / "swap.raw").unlink()
    await world.settle()
    assert world.asked == ["reconcile"]


def _truncate(path: Path, _: Path) -> None:
    os.truncate(path, 1)


def _replace(path: Path, elsewhere: Path) -> None:
    (elsewhere / "other").write_bytes(b"other")
    (elsewhere / "other").rename(path)


@pytest.mark.parametrize("harm", [_unlink, _move, _truncate, _replace])
async def test_base_that_is_lost_is_looked_after(
    world: World, tmp_path: Path, harm: Callable[[Path, Path], None]
) -> None:
    """Deleted, moved, truncated, replaced: what is not as long as it should be is lost."""
    base, path = await world.base()
    await world.settle()
    harm(path, tmp_path)
    await world.settle()
    await until(lambda: world.asked)
    assert world.asked[0] == f"lost {base.base_id}"


async def test_base_that_somebody_wrote_to_is_looked_after(world: World) -> None:
    """Its length says nothing, so it is read; one that came back whole is left in peace."""
    base, path = await world.base()
    path.rename(path.with_name("aside"))
    path.with_name("aside").rename(path)
    await world.settle()
    assert world.asked == []
    with path.open("r+b") as file:
        file.write(b"x")
    await world.settle()
    await until(lambda: world.asked)
    assert set(world.asked) == {f"verify {base.base_id}"}


async def test_base_that_somebody_wrote_to_and_nothing_can_prove_is_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was converted has no digest of its file until it was read for it."""
    base, path = await world.base()
    unread = replace(base, source_format="qcow2", virtual_size=base.size)

    async def row(_: BaseId) -> Base:
        return unread

    monkeypatch.setattr(world.rig.parts.catalog, "base", row)
    event = FileEvent(FileEventKind.WRITTEN, path, is_folder=False)
    await world.watch.take(world.watcher, [event])
    await until(lambda: world.asked)
    assert world.asked == [f"damaged {base.base_id}: somebody wrote to it"]


async def test_base_that_is_harmed_while_it_is_looked_after_is_looked_at_again(
    world: World,
) -> None:
    """One who mends it may be done with an earlier look."""
    base, path = await world.base()
    path.unlink()
    event = FileEvent(FileEventKind.DELETED, path, is_folder=False)
    for _ in range(2):
        await world.watch.take(world.watcher, [event])
    await until(lambda: len(world.asked) == 2)
    assert world.asked == [f"lost {base.base_id}"] * 2


async def test_full_copy_that_goes_needs_no_base(world: World) -> None:
    """It is noticed as an overlay is, and its base was in use when it was made."""
    spec = DiskSpec(image_id=world.image_id, size=None, mode=DiskMode.FULL)
    view, _ = await world.rig.disks.create(KEY, spec, NOBODY)
    used = (await world.base())[0].last_used_at
    world.rig.clock.now += 100
    view.path.unlink()
    await world.settle()
    assert await world.known() == []
    assert (await world.base())[0].last_used_at == used


async def test_lost_events_lead_to_a_full_pass(world: World) -> None:
    """What the kernel dropped is counted, and everything has to be watched anew."""
    event = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)
    assert not await world.watch.take(world.watcher, [event])
    assert world.rig.metric("inotify_overflows_total") == 1
    assert world.asked == ["reconcile", "deletion"]


@pytest.mark.parametrize("which", ["bases", "instances_dir", "shelf", "unmounted"])
async def test_root_that_goes_leads_to_a_full_pass(world: World, which: str) -> None:
    """A folder of the configuration that was deleted, moved or unmounted is not like others."""
    await world.disk()
    await world.settle()
    if which == "unmounted":
        event = FileEvent(FileEventKind.UNMOUNTED, world.shelf / "deep", is_folder=True)
        assert not await world.watch.take(world.watcher, [event])
    else:
        root = world.shelf if which == "shelf" else getattr(world.rig.layout, which)
        root.rename(root.with_name("elsewhere"))
        events = await anext(world.events)
        assert events == [FileEvent(FileEventKind.FOLDER_GONE, root, is_folder=True)]
        assert not await world.watch.take(world.watcher, events)
        assert await world.watch.changed()
        root.with_name("elsewhere").rename(root)
    assert not await world.watch.changed()
    assert world.asked == ["reconcile", "deletion"]
    assert await world.known() == [KEY]


@pytest.mark.parametrize("page", [1, 1000])
async def test_what_went_before_the_watches_stood_is_noticed(
    world: World, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look behind the watches finds disks and bases alike, however many at a time it takes."""
    monkeypatch.setattr(watching, "_PAGE", page)
    view = await world.disk()
    await world.disk(OTHER)
    base, path = await world.base()
    view.path.unlink()
    os.truncate(path, 1)
    async with await Watcher.open() as watcher:
        await world.watch.begin(watcher)
        assert view.path.parent in watcher.folders
    assert await world.known() == [OTHER]
    await until(lambda: len(world.asked) == 2)
    assert world.asked == ["deletion", f"lost {base.base_id}"]


async def test_disk_that_cannot_be_looked_at_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad inode, or a folder that is shut, does not keep the rest from being watched."""
    kept, gone = await world.disk(), await world.disk(OTHER)
    gone.path.unlink()

    def fail(path: Path, look: Callable[..., os.stat_result], **how: bool) -> os.stat_result:
        if path == kept.path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(path, **how)

    monkeypatch.setattr(Path, "lstat", partialmethod(fail, Path.lstat))
    monkeypatch.setattr(Path, "stat", partialmethod(fail, Path.stat))
    async with await Watcher.open() as watcher:
        await world.watch.begin(watcher)
    assert await world.known() == [KEY]


async def test_folder_that_may_not_be_mounted_proves_nothing(world: World) -> None:
    """What is empty now may have been full all the time: disks and bases stay known."""
    view = await world.disk()
    shutil.rmtree(view.path.parent)
    shutil.rmtree(world.rig.layout.bases)
    async with await Watcher.open() as watcher:
        await world.watch.begin(watcher)
    assert await world.known() == [KEY]
    assert world.asked == []
    assert world.rig.metric("unwatched_folders") == 1


async def test_folder_that_cannot_be_watched_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With too many watches the rest is still watched; the count ends with the folder."""
    lost = world.shelf / "deep" / "deeper"
    watch_tree = Watcher.watch_tree

    async def refuse(self: Watcher, root: Path, *, skip: AbstractSet[Path]) -> Tree:
        tree = await watch_tree(self, root, skip=skip)
        return replace(tree, unwatched={lost: "no space left"} if root == world.shelf else {})

    monkeypatch.setattr(Watcher, "watch_tree", refuse)
    async with await Watcher.open() as watcher:
        world.watcher, world.events = watcher, watcher.events()
        await world.watch.begin(watcher)
        assert world.rig.metric("unwatched_folders") == 1
        assert watcher.folders >= {world.shelf, lost.parent}
        lost.parent.rename(world.rig.layout.trash / "away")
        await world.settle()
        assert world.rig.metric("unwatched_folders") == 0


async def test_our_own_folders_are_no_part_of_a_scan_folder(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """Who has all of a file system scanned is not told of templates, downloads and trash."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    storage = {
        "state_dir": str(tmp_path / "link" / "state"),
        "scan_dirs": [str(tmp_path), str(tmp_path / "state" / "instances" / "deep")],
    }
    async with (
        rig_on(tmp_path, glance.url, storage=storage) as rig,
        await Watcher.open() as watcher,
    ):
        (rig.layout.instances_dir / "deep").mkdir()
        await Watched(rig.parts).begin(watcher)
        assert watcher.folders == {
            rig.layout.bases,
            rig.layout.instances_dir,
            rig.layout.instances_dir / "deep",
            tmp_path,
            tmp_path / "other",
        }
        assert rig.metric("unwatched_folders") == 0


async def test_burst_is_taken_in_order(world: World) -> None:
    """Whoever removes many instances at once leaves no row."""
    first = (await world.disk()).disk
    for number in range(2, 60):
        disk = await _fake_disk(world.rig, disk_key(number), first)
        assert disk.state is DiskState.READY
    await world.settle()
    for folder in world.rig.layout.instances_dir.iterdir():
        shutil.rmtree(folder)
    assert await world.settle()
    assert await world.known() == []
    assert world.asked.count("deletion") == 59


async def test_many_folders_are_one_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come together, folders are watched at once, and the catalog is asked once."""
    first = (await world.disk()).disk
    disks = [await _fake_disk(world.rig, disk_key(number), first) for number in range(2, 20)]
    folders = [world.rig.layout.instance(disk.key.instance_id) for disk in disks]
    asked: list[int] = []
    disk_states, watch_tree = world.rig.parts.catalog.disk_states, Watcher.watch_tree

    async def look(instances: Collection[InstanceId]) -> Mapping[DiskKey, DiskState]:
        asked.append(len(instances))
        return await disk_states(instances)

    async def watch(self: Watcher, *roots: Path, skip: AbstractSet[Path]) -> Tree:
        asked.append(len(roots))
        return await watch_tree(self, *roots, skip=skip)

    monkeypatch.setattr(world.rig.parts.catalog, "disk_states", look)
    monkeypatch.setattr(Watcher, "watch_tree", watch)
    came = [FileEvent(FileEventKind.CREATED, folder, is_folder=True) for folder in folders]
    assert await world.watch.take(world.watcher, came)
    assert asked == [18, 18]
    assert world.watcher.folders >= {*folders}
    assert world.asked == []


async def test_folder_that_went_and_came_again_is_watched_anew(world: World) -> None:
    """What counts of events that come together is how they end."""
    view = await world.disk()
    await world.disk(OTHER)
    await world.settle()
    folder = view.path.parent
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "data.qcow2").touch()
    assert await world.settle()
    assert await world.known() == [OTHER]
    assert sorted(world.asked) == ["deletion", "reconcile"]
    (folder / "data.qcow2").rename(folder / "swap.qcow2")
    assert await world.settle()
    assert sorted(world.asked) == ["deletion", "reconcile", "reconcile"]


async def test_what_happened_before_events_were_lost_counts(world: World) -> None:
    """Of a base that somebody wrote to, no look at it would tell."""
    base, path = await world.base()
    lost = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)
    wrote = FileEvent(FileEventKind.WRITTEN, path, is_folder=False)
    assert not await world.watch.take(world.watcher, [wrote, lost])
    await until(lambda: len(world.asked) == 3)
    assert sorted(world.asked) == ["deletion", "reconcile", f"verify {base.base_id}"]


@pytest.mark.parametrize("lying", ["making", "made", "nothing"])
async def test_disk_that_is_being_made_is_watched_or_looked_at(world: World, lying: str) -> None:
    """Whoever takes a file away that lay there is seen; without one it may have gone before."""
    first = (await world.disk()).disk
    await world.settle()
    await world.rig.parts.catalog.begin_disk(replace(first, key=OTHER))
    path = world.rig.layout.disk(OTHER, first.format)
    path.parent.mkdir()
    if lying != "nothing":
        (unfinished(path) if lying == "making" else path).touch()
    async with world.rig.creation.alone(OTHER):
        assert await world.settle()
        assert _all_looked() == (lying != "nothing")
        if lying == "making":
            unfinished(path).rename(path)
        await world.rig.parts.catalog.finish_disk(
            OTHER, virtual_size=512, now=world.rig.clock.time()
        )
        if lying != "nothing":
            path.unlink()
    assert await world.settle()
    await until(lambda: world.asked)
    assert await world.known() == [KEY]
    assert world.asked == ["deletion"]


async def test_look_that_fails_keeps_no_other_from_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes the events hears of it when all the others were looked at."""
    first = (await world.disk()).disk
    keys = [disk_key(number) for number in range(2, 40)]
    for key in keys:
        await _fake_disk(world.rig, key, first)
    await world.settle()
    notice, failed = world.rig.creation.notice, CatalogError("it cannot be read")

    async def look(key: DiskKey, *, seen: bool) -> bool:
        if key == OTHER:
            raise failed
        return await notice(key, seen=seen)

    monkeypatch.setattr(world.rig.creation, "notice", look)
    paths = [world.rig.layout.disk(key, first.format) for key in keys[:3]]
    for path in paths:
        path.unlink()
    events = [FileEvent(FileEventKind.DELETED, path, is_folder=False) for path in paths]
    with pytest.raises(CatalogError):
        await world.watch.take(world.watcher, events)
    assert await world.known() == sorted([KEY, OTHER, *keys[3:]], key=lambda key: key.instance_id)


async def _fake_disk(rig: Rig, key: DiskKey, like: Disk) -> Disk:
    """Have a disk known and lying there, which nobody made."""
    path = rig.layout.disk(key, like.format)
    await rig.parts.catalog.begin_disk(replace(like, key=key))
    path.parent.mkdir()
    path.touch()
    return await rig.parts.catalog.finish_disk(key, virtual_size=512, now=rig.clock.time())
