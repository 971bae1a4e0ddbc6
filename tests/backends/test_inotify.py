"""What a reader of file events can count on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends import inotify
from cacheagent.backends.inotify import FileEvent, FileEventKind, Watcher
from tests.needs import require, require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OVERFLOW = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    """Open a watcher and close it."""
    async with await Watcher.open() as watcher:
        yield watcher


async def _take(watcher: Watcher, count: int) -> list[FileEvent]:
    """Take events, however they come together, until there are so many."""
    taken: list[FileEvent] = []
    async for events in watcher.events():
        taken += events
        if len(taken) >= count:
            break
    return taken


async def test_a_file_is_seen_from_its_creation_to_its_end(
    tmp_path: Path, watcher: Watcher
) -> None:
    """Made, written, moved within the folder, deleted: each is one event, in order."""
    await watcher.watch(tmp_path)
    path, other = tmp_path / "root.qcow2", tmp_path / "other.qcow2"
    path.write_bytes(b"x")
    path.rename(other)
    other.unlink()
    assert await _take(watcher, 5) == [
        FileEvent(FileEventKind.CREATED, path, is_folder=False),
        FileEvent(FileEventKind.WRITTEN, path, is_folder=False),
        FileEvent(FileEventKind.MOVED_OUT, path, is_folder=False),
        FileEvent(FileEventKind.MOVED_IN, other, is_folder=False),
        FileEvent(FileEventKind.DELETED, other, is_folder=False),
    ]


async def test_a_new_folder_is_told_as_one_and_can_be_watched_then(
    tmp_path: Path, watcher: Watcher
) -> None:
    """Watches are not recursive: the reader adds what it wants to see."""
    await watcher.watch(tmp_path)
    folder = tmp_path / "instance"
    folder.mkdir()
    (folder / "unseen").touch()
    assert await _take(watcher, 1) == [FileEvent(FileEventKind.CREATED, folder, is_folder=True)]
    await watcher.watch(folder)
    (folder / "seen").touch()
    (event, _) = await _take(watcher, 2)
    assert event == FileEvent(FileEventKind.CREATED, folder / "seen", is_folder=False)


@pytest.mark.parametrize("how", ["deleted", "moved away"])
async def test_a_watched_folder_that_goes_is_told_once(
    tmp_path: Path, watcher: Watcher, how: str
) -> None:
    """The reader learns that it is blind there, and may watch a new folder of that name."""
    folder = tmp_path / "folder"
    folder.mkdir()
    await watcher.watch(folder)
    if how == "deleted":
        folder.rmdir()
    else:
        folder.rename(tmp_path / "elsewhere")
    assert await _take(watcher, 1) == [FileEvent(FileEventKind.FOLDER_GONE, folder, is_folder=True)]
    assert watcher.folders == frozenset()
    folder.mkdir()
    await watcher.watch(folder)
    (folder / "new").touch()
    (event, _) = await _take(watcher, 2)
    assert event == FileEvent(FileEventKind.CREATED, folder / "new", is_folder=False)


async def test_a_folder_that_is_watched_anew_outlives_the_end_of_the_old_one(
    tmp_path: Path, watcher: Watcher
) -> None:
    """The kernel tells late of the end of a folder that somebody still has open."""
    folder = tmp_path / "folder"
    folder.mkdir()
    await watcher.watch(tmp_path)
    await watcher.watch(folder)
    held = os.open(folder, os.O_RDONLY)
    folder.rmdir()
    assert await _take(watcher, 1) == [FileEvent(FileEventKind.DELETED, folder, is_folder=True)]
    await watcher.unwatch(folder)
    folder.mkdir()
    await watcher.watch(folder)
    os.close(held)
    (folder / "new").mkdir()
    assert await _take(watcher, 2) == [
        FileEvent(FileEventKind.CREATED, folder, is_folder=True),
        FileEvent(FileEventKind.CREATED, folder / "new", is_folder=True),
    ]


async def test_a_change_within_a_file_is_told_where_it_was_asked_for(
    tmp_path: Path, watcher: Watcher
) -> None:
    """truncate(2) opens nothing, so that no writer closes anything."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "base").write_bytes(b"12345678")
    await watcher.watch(one)
    await watcher.watch(other, modified=True)
    for folder in (one, other):
        os.truncate(folder / "base", 4)
    assert await _take(watcher, 1) == [
        FileEvent(FileEventKind.MODIFIED, other / "base", is_folder=False)
    ]


async def test_a_tree_is_watched_and_listed(tmp_path: Path, watcher: Watcher) -> None:
    """All folders but those to be left out; links are files, wherever they lead."""
    deep, left_out = tmp_path / "a" / "b", tmp_path / "c"
    for folder in (deep, left_out / "d"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (tmp_path / "link").symlink_to(left_out)
    tree = await watcher.watch_tree(tmp_path, skip={left_out})
    assert sorted(tree.files) == [str(deep / "file"), str(tmp_path / "link")]
    assert tree.unwatched == {}
    assert watcher.folders == {tmp_path, tmp_path / "a", deep}
    assert watcher.watches(deep)
    assert not watcher.watches(tmp_path / "link")
    (deep / "new").mkdir()
    assert [event.path for event in await _take(watcher, 1)] == [deep / "new"]


async def test_a_tree_that_was_moved_is_unwatched_as_a_whole(
    tmp_path: Path, watcher: Watcher
) -> None:
    """What happens in it has another name now."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "deep").mkdir(parents=True)
    (tmp_path / "older").mkdir()
    await watcher.watch_tree(tmp_path)
    old.rename(new)
    await _take(watcher, 3)
    await watcher.unwatch_tree(old)
    assert watcher.folders == {tmp_path, tmp_path / "older"}
    (new / "deep" / "unseen").mkdir()
    await watcher.watch_tree(new)
    (new / "deep" / "seen").mkdir()
    assert [event.path for event in await _take(watcher, 1)] == [new / "deep" / "seen"]


async def test_many_trees_are_watched_and_unwatched_at_once(
    tmp_path: Path, watcher: Watcher
) -> None:
    """Where many folders come or go together, they are one piece of work."""
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    for folder in (one, other, third):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").touch()
    tree = await watcher.watch_tree(one, other, third, skip={third / "deep"})
    assert sorted(map(Path, tree.files)) == [one / "deep" / "file", other / "deep" / "file"]
    await watcher.unwatch_tree(one, other / "deep")
    assert watcher.folders == {other, third}
    await watcher.unwatch(other, third)
    assert watcher.folders == frozenset()


async def test_a_tree_that_has_gone_is_empty(tmp_path: Path, watcher: Watcher) -> None:
    """A folder that was deleted between its event and the look at it is no failure."""
    tree = await watcher.watch_tree(tmp_path / "gone")
    assert (tree.files, tree.unwatched) == ((), {})


async def test_an_unwatched_folder_is_silent(tmp_path: Path, watcher: Watcher) -> None:
    """After unwatch the next event is that of another folder."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        await watcher.watch(folder)
    await watcher.unwatch(one)
    await watcher.unwatch(one)
    (one / "x").touch()
    (other / "x").mkdir()
    assert await _take(watcher, 1) == [
        FileEvent(FileEventKind.CREATED, other / "x", is_folder=True)
    ]


async def test_watching_twice_gives_each_event_once(tmp_path: Path, watcher: Watcher) -> None:
    """A reader need not remember what it watches."""
    await watcher.watch(tmp_path)
    await watcher.watch(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert [event.path for event in await _take(watcher, 2)] == [tmp_path / "a", tmp_path / "b"]


async def test_what_is_no_folder_cannot_be_watched(tmp_path: Path, watcher: Watcher) -> None:
    """A missing folder and a file are refused with their name."""
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(OSError, match=f"cannot watch {tmp_path / name}"):
            await watcher.watch(tmp_path / name)
    assert watcher.folders == frozenset()


async def test_a_name_that_is_no_text_becomes_an_overflow(tmp_path: Path, watcher: Watcher) -> None:
    """What cannot be told is not swallowed: the reader is sent to look."""
    await watcher.watch(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH102 -- a Path holds no such name
    (tmp_path / "name").mkdir()
    assert await _take(watcher, 2) == [
        OVERFLOW,
        FileEvent(FileEventKind.CREATED, tmp_path / "name", is_folder=True),
    ]


async def test_events_that_cannot_be_read_become_an_overflow(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is never left to believe that nothing happened."""
    await watcher.watch(tmp_path)
    # Into so little the kernel puts no event, and says so.
    monkeypatch.setattr(inotify, "_MOST_READ", 1)
    (tmp_path / "x").mkdir()
    assert (await _take(watcher, 1))[0] == OVERFLOW


async def test_what_happens_meanwhile_comes_together(tmp_path: Path, watcher: Watcher) -> None:
    """A reader that is busy finds all that came since, in order, as one."""
    await watcher.watch(tmp_path)
    (tmp_path / "first").mkdir()
    async with contextlib.aclosing(watcher.events()) as batches:
        await anext(batches)
        names = [f"{number:03}" for number in range(100)]
        for name in names:
            (tmp_path / name).mkdir()
        assert [event.path for event in await anext(batches)] == [tmp_path / name for name in names]


async def test_events_that_nobody_takes_become_an_overflow(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reader costs no memory without bound, and is told that it missed something."""
    monkeypatch.setattr(inotify, "_MOST_WAITING", 3)
    await watcher.watch(tmp_path)
    for name in "abcdef":
        (tmp_path / name).mkdir()
    assert await _take(watcher, 3) == [
        OVERFLOW,
        FileEvent(FileEventKind.CREATED, tmp_path / "e", is_folder=True),
        FileEvent(FileEventKind.CREATED, tmp_path / "f", is_folder=True),
    ]


def _most_queued() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


async def test_an_overflow_of_the_kernel_is_told(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel dropped events, the reader knows."""
    limit = _most_queued()
    require(limit <= 100_000, f"the kernel keeps {limit} events: too many to make it drop some")
    monkeypatch.setattr(inotify, "_MOST_WAITING", 2 * limit)
    await watcher.watch(tmp_path)
    for _ in range(limit // 2 + 1):
        (tmp_path / "x").mkdir()
        (tmp_path / "x").rmdir()
    assert (await _take(watcher, limit + 1))[-1] == OVERFLOW


async def test_close_ends_the_events(tmp_path: Path) -> None:
    """A reader's loop ends by itself when the watcher is closed, even twice."""
    watcher = await Watcher.open()
    await watcher.watch(tmp_path)
    (tmp_path / "x").mkdir()
    seen = []
    async for events in watcher.events():
        seen += [event.kind for event in events]
        watcher.close()
        watcher.close()
    assert seen == [FileEventKind.CREATED]


async def test_a_caller_that_gives_up_leaves_the_watcher_whole(
    tmp_path: Path, watcher: Watcher
) -> None:
    """A watch that was begun is completed: its events come, nothing is half known."""
    begun = asyncio.create_task(watcher.watch(tmp_path))
    await asyncio.sleep(0)
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    await watcher.watch(tmp_path)
    (tmp_path / "x").mkdir()
    assert [event.path for event in await _take(watcher, 1)] == [tmp_path / "x"]


async def test_closing_while_a_watch_begins_is_safe(tmp_path: Path) -> None:
    """The end of a daemon does not wait for a folder, and leaves no descriptor."""
    watcher = await Watcher.open()
    begun = asyncio.create_task(watcher.watch(tmp_path))
    await asyncio.sleep(0)
    watcher.close()
    await begun
    assert [event async for event in watcher.events()] == []
    await watcher.watch(tmp_path / "missing")


def test_importing_it_is_silent() -> None:
    """The age of pyinotify does not show: no warning, no handler of its own."""
    code = (
        "import logging, cacheagent.backends.inotify;"
        "assert not logging.getLogger('pyinotify').handlers"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def _alone(code: str, folder: Path) -> list[str]:
    """Run code, for which ``folder`` is its own, as root of a namespace; give what it prints."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    require_programs("unshare", "mount", "umount")
    may = subprocess.run([*alone, "mount", "-t", "tmpfs", "x", folder], check=False)
    require(may.returncode == 0, "no namespace may be made, or nothing be mounted in one")
    done = subprocess.run(
        [*alone, sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_system_that_goes_is_told(tmp_path: Path) -> None:
    """The reader learns that it is blind there: the files may all be well."""
    code = """if True:
        import asyncio, pathlib, subprocess, sys
        from cacheagent.backends.inotify import Watcher

        async def main(folder):
            subprocess.run(["mount", "-t", "tmpfs", "x", folder], check=True)
            (folder / "deep").mkdir()
            async with await Watcher.open() as watcher:
                await watcher.watch_tree(folder)
                subprocess.run(["umount", folder], check=True)
                told = []
                async for events in watcher.events():
                    told += events
                    if len(told) == 2:
                        break
                for event in sorted(told, key=str):
                    print(event.kind.name, event.path.relative_to(folder), watcher.folders)

        asyncio.run(main(pathlib.Path(sys.argv[1])))
    """
    assert _alone(code, tmp_path) == [
        "UNMOUNTED . frozenset()",
        "UNMOUNTED deep frozenset()",
    ]


def test_too_many_watches_are_told(tmp_path: Path) -> None:
    """What can be watched is watched; what cannot be is named with the reason."""
    code = """if True:
        import asyncio, pathlib, sys
        from cacheagent.backends.inotify import Watcher

        async def main(folder):
            pathlib.Path("/proc/sys/user/max_inotify_watches").write_text("2")
            async with await Watcher.open() as watcher:
                tree = await watcher.watch_tree(folder)
                print(len(watcher.folders), len(tree.files), *tree.unwatched.values())

        asyncio.run(main(pathlib.Path(sys.argv[1])))
    """
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (told,) = _alone(code, tmp_path)
    assert told.startswith(f"2 2 cannot watch {tmp_path}/")
    assert "ENOSPC" in told
