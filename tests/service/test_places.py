"""What events of files come to, before anybody looks at a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheagent.backends.inotify import FileEvent, FileEventKind
from cacheagent.policy.layout import Layout, unfinished
from cacheagent.service.places import disks, instances, places
from tests.fakes.values import disk_key, instance_id

LAYOUT = Layout(state_dir=Path("/state"), instances_dir=Path("/instances"))
FOLDER = LAYOUT.instance(instance_id(1))
DISK = FOLDER / "root.qcow2"


def _folder(kind: str, path: Path = FOLDER) -> FileEvent:
    return FileEvent(FileEventKind[kind], path, is_folder=True)


def _file(kind: str, path: Path = DISK) -> FileEvent:
    return FileEvent(FileEventKind[kind], path, is_folder=False)


@pytest.mark.parametrize(
    ("kinds", "deleted", "moved", "came"),
    [
        (["CREATED"], False, False, True),
        (["MOVED_IN"], False, False, True),
        (["CREATED", "FOLDER_GONE", "DELETED"], True, False, False),
        (["DELETED", "CREATED"], True, False, True),
        (["MOVED_OUT", "FOLDER_GONE", "MOVED_IN", "DELETED"], True, True, False),
        (["FOLDER_GONE"], False, False, False),
    ],
)
def test_the_last_that_happened_to_a_folder_tells_whether_it_is_there(
    kinds: list[str], *, deleted: bool, moved: bool, came: bool
) -> None:
    """That it went meanwhile is known all the same: its watch is that of another folder."""
    found = places(LAYOUT, map(_folder, kinds))
    assert (found.deleted, found.moved, found.came) == tuple(
        {FOLDER} if holds else set() for holds in (deleted, moved, came)
    )
    assert not found.freed


@pytest.mark.parametrize(
    ("kinds", "gone", "lying"),
    [
        (["CREATED"], False, False),
        (["WRITTEN", "WRITTEN"], False, True),
        (["MOVED_IN"], False, True),
        (["MOVED_IN", "DELETED"], True, False),
        (["MOVED_OUT", "WRITTEN"], True, True),
    ],
)
def test_the_last_that_happened_to_a_disk_tells_whether_to_look_for_it(
    kinds: list[str], *, gone: bool, lying: bool
) -> None:
    """A file that was only begun is told again when it is closed."""
    found = places(LAYOUT, map(_file, kinds))
    assert found.gone == ({disk_key(1)} if gone else set())
    assert found.files == ({disk_key(1): DISK} if lying else {})
    assert not found.freed


@pytest.mark.parametrize(
    ("path", "freed"),
    [
        (Path("/scanned/vm.img"), True),
        (Path("/scanned") / unfinished(DISK).name, True),
        (FOLDER / "notes.txt", True),
        (FOLDER / "deep" / "root.qcow2", True),
        (unfinished(FOLDER / "notes.txt"), True),
        (unfinished(DISK), False),
        (DISK, False),
    ],
)
def test_what_may_have_been_an_overlay_of_somebody_else_frees_a_base(
    path: Path, *, freed: bool
) -> None:
    """All but a disk, which is asked for, and one that was never finished."""
    assert places(LAYOUT, [_file("WRITTEN", path), _file("DELETED", path)]).freed == freed


def test_what_happens_beside_the_bases_is_kept_in_order_and_once() -> None:
    """To look twice at the same base for the same reason finds nothing more."""
    base, other = LAYOUT.bases / "a", LAYOUT.bases / "b"
    events = [_file("WRITTEN", base), _file("DELETED", other), _file("WRITTEN", base)]
    lost = FileEvent(FileEventKind.OVERFLOW, None, is_folder=False)
    found = places(LAYOUT, [*events, lost, _file("DELETED", base)])
    assert list(found.bases) == [
        (FileEventKind.WRITTEN, base),
        (FileEventKind.DELETED, other),
        (FileEventKind.DELETED, base),
    ]


def test_files_are_those_of_disks_or_of_nobody() -> None:
    """A name of ours counts in an instance's own folder only."""
    swap = unfinished(FOLDER / "swap.raw")
    assert disks(LAYOUT, [DISK, swap, FOLDER / "notes.txt", Path("/scanned/root.qcow2")]) == (
        {disk_key(1): DISK},
        {disk_key(1, "swap")},
    )
    assert instances(LAYOUT, [FOLDER, FOLDER / "deep", LAYOUT.bases]) == {instance_id(1)}
