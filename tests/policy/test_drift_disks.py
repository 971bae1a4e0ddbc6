"""What the start does about differences of disks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheagent.model import (
    Disk,
    DiskKey,
    DiskMode,
    DiskState,
)
from cacheagent.policy.drift import DriftPlan, FilesState, FinishedDisk, FoundDisk
from tests.fakes.values import base, base_id, disk
from tests.policy.states import (
    KEY,
    LAYOUT,
    NOTHING,
    QCOW2,
    RAW,
    cached_image,
    catalog_state,
    files_state,
    found_base,
    found_overlay,
    plan,
)

PENDING, FAILED = DiskState.PENDING, DiskState.FAILED


@pytest.mark.parametrize("mode", list(DiskMode))
def test_a_disk_whose_file_is_complete_is_ready(mode: DiskMode) -> None:
    """The final name is given last: a disk that has it was made."""
    row = disk(KEY, 1, state=PENDING, mode=mode)
    found = found_overlay(backing=1 if mode is DiskMode.OVERLAY else None)
    made = plan(catalog_state(base(1), row), files_state(found_base(base(1)), found))
    assert made == DriftPlan(finish_disks=(FinishedDisk(key=KEY, virtual_size=2 << 30),))


@pytest.mark.parametrize(
    ("row", "failing"),
    [
        (disk(KEY, 1, state=PENDING, virtual_size=1 << 30), (KEY,)),
        (disk(KEY, 2, state=PENDING), (KEY,)),
        (disk(KEY, 1, state=FAILED), ()),
    ],
    ids=["another size", "another base", "failed before"],
)
def test_a_file_that_is_not_the_disk_is_not_taken_for_it(
    row: Disk, failing: tuple[DiskKey, ...]
) -> None:
    """What somebody put where a disk was to be made stays theirs, and the disk was not made."""
    made = plan(catalog_state(base(1), row), files_state(found_base(base(1)), found_overlay()))
    assert made == DriftPlan(fail_disks=failing, strays=(LAYOUT.disk(KEY, QCOW2),))


def test_a_disk_that_was_being_made_has_failed() -> None:
    """A disk without a file was not made; who asked for it can see that, and ask again."""
    made = plan(catalog_state(disk(KEY, None, state=PENDING)), files_state(instances=()))
    assert made == DriftPlan(fail_disks=(KEY,))


def test_a_disk_that_failed_stays_so() -> None:
    """A failure is no drift."""
    assert plan(catalog_state(disk(KEY, None, state=FAILED)), files_state()) == NOTHING


def test_a_disk_without_its_file_is_dropped() -> None:
    """Somebody removed the file, so there is no such disk any more."""
    assert plan(catalog_state(disk(KEY, None)), files_state()) == DriftPlan(drop_disk_rows=(KEY,))


@pytest.mark.parametrize(
    "files",
    [
        files_state(instances=None),
        files_state(unreadable=(1,)),
        replace(files_state(instances=()), unmounted=True),
        files_state(replace(found_overlay(), doubtful=True)),
    ],
    ids=["no folder", "folder unreadable", "nothing mounted", "file unreadable"],
)
def test_a_doubt_keeps_a_disk(files: FilesState) -> None:
    """Unless it is certain that the file is gone, the disk stays, and its base with it."""
    assert plan(catalog_state(disk(KEY, None)), files) == DriftPlan(doubtful_disks=(KEY,))


def test_the_last_disk_of_all_is_gone_like_any_other() -> None:
    """A folder that is known, and empty, is no mount point."""
    made = plan(catalog_state(disk(KEY, None)), files_state(instances=()))
    assert made == DriftPlan(drop_disk_rows=(KEY,))


def test_a_doubt_ends_no_making() -> None:
    """A disk that was being made in a folder that cannot be read is neither made nor failed."""
    row = disk(KEY, None, state=PENDING)
    made = plan(catalog_state(row), files_state(unreadable=(1,)))
    assert made == DriftPlan(doubtful_disks=(KEY,))


def test_a_file_that_nobody_knows_and_nobody_can_read_is_left_alone() -> None:
    """A disk is taken in only when its header says what it is."""
    made = plan(catalog_state(), files_state(replace(found_overlay(), doubtful=True)))
    assert made == DriftPlan(doubtful_disks=(KEY,))


def test_an_overlay_of_a_lost_base_is_taken_in() -> None:
    """The disk keeps the name of its base, in case that comes back."""
    made = plan(catalog_state(), files_state(found_overlay()))
    assert [(each.base_id, each.mode, each.image_id) for each in made.adopt_disks] == [
        (base_id(1), DiskMode.OVERLAY, None)
    ]


def test_an_overlay_of_a_base_of_two_images_has_no_image() -> None:
    """Which of two equal images was asked for is not invented."""
    catalog = catalog_state(base(1), cached_image(1, 1), cached_image(2, 1))
    made = plan(catalog, files_state(found_base(base(1)), found_overlay()))
    assert [each.image_id for each in made.adopt_disks] == [None]


def test_two_files_of_one_disk_are_left_alone() -> None:
    """Nobody guesses which of two files is the disk; beside the known one the other is a stray."""
    raw = FoundDisk(key=KEY, format=RAW, virtual_size=5)
    paths = {LAYOUT.disk(KEY, RAW), LAYOUT.disk(KEY, QCOW2)}
    assert set(plan(catalog_state(), files_state(found_overlay(), raw)).strays) == paths
    known = plan(catalog_state(disk(KEY, 1)), files_state(found_overlay(), raw))
    assert known == DriftPlan(strays=(LAYOUT.disk(KEY, RAW),))
