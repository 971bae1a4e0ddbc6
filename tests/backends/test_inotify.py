"""What a reader of file events can count on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends import inotify
from cacheagent.backends.inotify import FileEvent, FileEventKind, Watcher
from tests.needs import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OVERFLOW = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)


@pytest.fixture
async def watcher() -> AsyncIterator[Watcher]:
    """Open a watcher and close it."""
    async with await Watcher.open() as watcher:
        yield watcher


async def _take(watcher: Watcher, count: int) -> list[FileEvent]:
    events = watcher.events()
    return [await anext(events) for _ in range(count)]


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
    assert await _take(watcher, 1) == [OVERFLOW]


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
    async for event in watcher.events():
        seen.append(event.kind)
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
