"""What the start does about differences of bases, downloads and leftovers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cacheagent import metrics
from cacheagent.model import (
    Base,
    BaseState,
    CacheResult,
    Disk,
    DiskMode,
    DiskState,
)
from cacheagent.policy.drift import (
    CatalogState,
    DriftPlan,
    FilesState,
    FinishedDisk,
    FoundDisk,
    Running,
    merged,
)
from cacheagent.policy.inventory import Leftover, LeftoverKind
from cacheagent.policy.layout import refused_name
from tests.fakes.values import base, base_id, disk, disk_key, glance_image, image_id
from tests.policy.states import (
    KEY,
    LATER,
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


def trashed(number: int) -> tuple[Leftover, ...]:
    """Give what an eviction has put into the trash: a base and its manifest."""
    base_file = Leftover(
        kind=LeftoverKind.TRASH,
        path=LAYOUT.trashed(base_id(number), RAW),
        base_id=base_id(number),
        format=RAW,
    )
    manifest = LAYOUT.trashed_manifest(base_id(number), RAW)
    return base_file, replace(base_file, kind=LeftoverKind.TRASHED_MANIFEST, path=manifest)


def test_where_both_agree_nothing_is_done() -> None:
    """A clean stop leaves no difference."""
    catalog = catalog_state(base(1), cached_image(1, 1), disk(KEY, 1))
    assert plan(catalog, files_state(found_base(base(1)), found_overlay())) == NOTHING


# --- bases --------------------------------------------------------------------------------------


def test_without_a_catalog_everything_comes_from_the_files() -> None:
    """Bases, the images of their manifests, and disks are found again; bases count as used now."""
    files = files_state(
        found_base(base(1), glance_image(1)),
        found_overlay(),
        FoundDisk(key=disk_key(2, "data"), format=RAW, virtual_size=5),
    )
    assert plan(catalog_state(), files) == DriftPlan(
        adopt_bases=(base(1, last_used_at=LATER),),
        adopt_images=(cached_image(1, 1),),
        adopt_disks=(
            replace(disk(KEY, 1, spec=None, cache=CacheResult.HIT), created_at=LATER),
            replace(
                disk(disk_key(2, "data"), None, spec=None, format=RAW, mode=DiskMode.FULL),
                virtual_size=5,
                created_at=LATER,
            ),
        ),
    )


def test_a_base_published_just_before_the_crash_is_taken_in() -> None:
    """The download had ended; its image is not asked for again, and its part is useless."""
    part = Leftover(kind=LeftoverKind.PART, path=LAYOUT.part(image_id(1)), image_id=image_id(1))
    found = replace(found_base(base(1), glance_image(1)), allocated=77)
    made = plan(catalog_state(cached_image(1, None)), files_state(found, leftovers=(part,)))
    assert made == DriftPlan(
        adopt_bases=(base(1, allocated=77, last_used_at=LATER),),
        adopt_images=(cached_image(1, 1),),
        remove_files=(part.path,),
    )


@pytest.mark.parametrize("manifest", [None, base(2), base(1, format=QCOW2)])
def test_a_file_without_its_manifest_is_no_base(manifest: Base | None) -> None:
    """What nobody verified is left alone, whatever its name says, until its digest proves it."""
    found = replace(found_base(base(1)), manifest=manifest)
    made = plan(catalog_state(), files_state(found))
    assert made == DriftPlan(
        strays=(LAYOUT.base(base_id(1), RAW),), unproved_bases=((base_id(1), RAW),)
    )


def test_a_file_of_another_length_than_its_manifest_says_is_no_base() -> None:
    """A base that became shorter while there was no catalog is not taken for whole."""
    found = replace(found_base(base(1)), length=1)
    made = plan(catalog_state(), files_state(found))
    assert (made.adopt_bases, made.unproved_bases) == ((), ((base_id(1), RAW),))


def test_a_manifest_that_was_lost_is_written_again() -> None:
    """It takes no base away, and the next loss of a catalog must not either."""
    found = replace(found_base(base(1)), manifest=None)
    made = plan(catalog_state(base(1)), files_state(found))
    assert made == DriftPlan(write_manifests=(base_id(1),))


def test_a_base_of_another_length_is_to_be_repaired() -> None:
    """Whoever truncated it, no disk can rely on it any more."""
    found = replace(found_base(base(1)), length=1)
    assert plan(catalog_state(base(1)), files_state(found)) == DriftPlan(lost_bases=(base_id(1),))


def test_a_base_without_its_file_is_dropped() -> None:
    """A row that promises a file that is gone goes, and its images with it."""
    full = disk(KEY, 1, mode=DiskMode.FULL)
    made = plan(catalog_state(base(1), cached_image(1, 1), full), files_state(found_overlay()))
    assert made == DriftPlan(drop_base_rows=(base_id(1),))


@pytest.mark.parametrize("known", [(), (disk(KEY, 1),)])
def test_a_base_without_its_file_that_disks_need_is_to_be_fetched_anew(
    known: tuple[Disk, ...],
) -> None:
    """Its overlays, known or just found, are worth nothing without it."""
    made = plan(catalog_state(base(1), cached_image(1, 1), *known), files_state(found_overlay()))
    assert (made.lost_bases, made.drop_base_rows) == ((base_id(1),), ())


def test_a_base_that_its_last_disk_has_left_is_not_fetched_anew() -> None:
    """A disk whose file has gone as well needs no base."""
    made = plan(catalog_state(base(1), disk(KEY, 1)), files_state())
    assert made == DriftPlan(drop_base_rows=(base_id(1),), drop_disk_rows=(KEY,))


def test_a_base_in_another_format_takes_the_place_of_its_row() -> None:
    """The file that is there counts, not the one that was there."""
    found = found_base(base(1, format=QCOW2), glance_image(1))
    made = plan(catalog_state(base(1), cached_image(1, 1)), files_state(found))
    assert made == DriftPlan(
        drop_base_rows=(base_id(1),),
        adopt_bases=(base(1, format=QCOW2, last_used_at=LATER),),
        adopt_images=(cached_image(1, 1),),
    )


def test_a_second_file_of_a_base_is_a_stray() -> None:
    """One content is one base: beside the known file another is left alone."""
    catalog = catalog_state(base(1))
    made = plan(catalog, files_state(found_base(base(1)), found_base(base(1, format=QCOW2))))
    assert made == DriftPlan(strays=(LAYOUT.base(base_id(1), QCOW2),))


def test_of_two_unknown_files_of_a_base_the_newer_counts() -> None:
    """Where nobody knows better, the base that came last is taken in."""
    newer = base(1, format=QCOW2, fetched_at=LATER)
    made = plan(catalog_state(), files_state(found_base(base(1)), found_base(newer)))
    assert made.adopt_bases == (replace(newer, last_used_at=LATER),)
    assert made.strays == (LAYOUT.base(base_id(1), RAW),)


def test_an_image_in_two_manifests_stands_for_the_newer_base() -> None:
    """An image id that was used again means what it meant last."""
    newer = base(2, fetched_at=LATER)
    made = plan(
        catalog_state(),
        files_state(found_base(newer, glance_image(1)), found_base(base(1), glance_image(1))),
    )
    assert [cached.base_id for cached in made.adopt_images] == [base_id(2)]


def test_an_eviction_that_had_not_begun_is_taken_back() -> None:
    """A base that is EVICTING and still has its file is READY again."""
    row = base(1, state=BaseState.EVICTING)
    made = plan(
        catalog_state(row, cached_image(1, 1)), files_state(found_base(base(1), glance_image(1)))
    )
    assert made == DriftPlan(revert_evictions=(base_id(1),))


def test_an_eviction_that_took_the_file_is_ended() -> None:
    """A base that is EVICTING and has no file goes, with its manifest, templates and trash."""
    leftovers = (
        Leftover(
            kind=LeftoverKind.MANIFEST,
            path=LAYOUT.manifest(base_id(1), RAW),
            base_id=base_id(1),
            format=RAW,
        ),
        Leftover(
            kind=LeftoverKind.TEMPLATE, path=Path("template"), base_id=base_id(1), format=QCOW2
        ),
        *trashed(1),
    )
    row = base(1, state=BaseState.EVICTING)
    made = plan(catalog_state(row), files_state(leftovers=leftovers))
    assert made == DriftPlan(
        finish_evictions=(base_id(1),),
        remove_files=tuple(leftover.path for leftover in leftovers),
    )


def test_a_quarantined_base_stays_what_it_is() -> None:
    """What failed verification is no base again; its file and its manifest stay."""
    left = (
        Leftover(kind=LeftoverKind.MANIFEST, path=Path("m"), base_id=base_id(1), format=RAW),
        Leftover(kind=LeftoverKind.QUARANTINE, path=Path("q"), base_id=base_id(1), format=RAW),
    )
    row = base(1, state=BaseState.QUARANTINED)
    assert plan(catalog_state(row), files_state(leftovers=left)) == NOTHING


def test_a_damaged_base_goes_where_it_belongs() -> None:
    """A crash before its file was moved leaves it among the sound ones."""
    row = base(1, state=BaseState.QUARANTINED)
    made = plan(catalog_state(row), files_state(found_base(row)))
    assert made == DriftPlan(quarantine_bases=((base_id(1), RAW),))


@pytest.mark.parametrize("rows", [(), (base(1),)])
def test_what_is_quarantined_for_nobody_is_removed(rows: tuple[Base, ...]) -> None:
    """A base that was fetched anew, or forgotten, leaves its damaged file to nobody."""
    left = Leftover(kind=LeftoverKind.QUARANTINE, path=Path("q"), base_id=base_id(1), format=RAW)
    found = tuple(found_base(row) for row in rows)
    made = plan(catalog_state(*rows), files_state(*found, leftovers=(left,)))
    assert made == DriftPlan(remove_files=(left.path,))


@pytest.mark.parametrize("kinds", [{"file"}, {"record"}, {"file", "record"}])
def test_a_refused_image_stays_with_its_record(kinds: set[str]) -> None:
    """A crash may leave one of the two; that alone tells nobody anything."""
    name = refused_name(image_id(1), LATER, "corrupt")
    file = Leftover(kind=LeftoverKind.REFUSED, path=LAYOUT.refused(name), refused=name)
    record = replace(file, kind=LeftoverKind.REFUSED_RECORD, path=LAYOUT.refused_record(name))
    left = [each for each in (file, record) if {file: "file", record: "record"}[each] in kinds]
    made = plan(catalog_state(), files_state(leftovers=tuple(left)))
    assert made == (NOTHING if len(left) == 2 else DriftPlan(remove_files=(left[0].path,)))


def test_where_the_bases_cannot_be_read_all_rows_stay() -> None:
    """A folder that cannot be read is no reason to forget a base, nor to remove a template."""
    template = Leftover(
        kind=LeftoverKind.TEMPLATE, path=Path("t"), base_id=base_id(3), format=QCOW2
    )
    catalog = catalog_state(base(1), base(2, state=BaseState.EVICTING))
    assert plan(catalog, files_state(leftovers=(template,), bases_readable=False)) == NOTHING


# --- the trash ------


def test_a_base_in_the_trash_that_is_used_comes_back() -> None:
    """Somebody began to use it while it went: its row is READY again, nothing of it is removed."""
    row, file = base(1, state=BaseState.EVICTING), found_base(base(1), glance_image(1))
    files = files_state(leftovers=trashed(1), wanted_trash=(file,))
    made = plan(catalog_state(row, cached_image(1, 1)), files)
    assert made == DriftPlan(restore_bases=((base_id(1), RAW),), revert_evictions=(base_id(1),))


def test_a_base_in_the_trash_that_is_used_comes_back_without_a_catalog() -> None:
    """Its manifest, which may not have been moved yet, tells what it was."""
    manifest = Leftover(kind=LeftoverKind.MANIFEST, path=Path("m"), base_id=base_id(1), format=RAW)
    files = files_state(
        leftovers=(manifest, trashed(1)[0]), wanted_trash=(found_base(base(1), glance_image(1)),)
    )
    assert plan(catalog_state(), files) == DriftPlan(
        restore_bases=((base_id(1), RAW),),
        adopt_bases=(base(1, last_used_at=LATER),),
        adopt_images=(cached_image(1, 1),),
    )


def test_a_base_in_the_trash_that_came_anew_is_removed() -> None:
    """Whoever used the old file has the new one by its name."""
    file = found_base(base(1))
    files = files_state(file, leftovers=trashed(1), wanted_trash=(file,))
    made = plan(catalog_state(base(1)), files)
    assert made == DriftPlan(remove_files=tuple(each.path for each in trashed(1)))


def test_where_the_bases_cannot_be_read_what_is_used_stays_in_the_trash() -> None:
    """Nobody can tell whether it may come back."""
    files = files_state(
        leftovers=trashed(1), wanted_trash=(found_base(base(1)),), bases_readable=False
    )
    assert plan(catalog_state(base(1, state=BaseState.EVICTING)), files) == NOTHING


# --- leftovers ----------------------------------------------------------------------------------


def test_a_download_that_was_asked_for_goes_on() -> None:
    """Part and record of an image that is awaited stay; the conversion is made anew."""
    part, record, conversion = (
        Leftover(kind=kind, path=Path(name), image_id=image_id(1))
        for kind, name in (
            (LeftoverKind.PART, "part"),
            (LeftoverKind.PART, "record"),
            (LeftoverKind.CONVERSION, "conversion"),
        )
    )
    made = plan(
        catalog_state(cached_image(1, None)), files_state(leftovers=(part, record, conversion))
    )
    assert made == DriftPlan(resume_ingests=(image_id(1),), remove_files=(conversion.path,))


def test_a_part_that_nobody_awaits_is_removed() -> None:
    """A part of an image that is here already, or that nobody asked for, is useless."""
    parts = tuple(
        Leftover(kind=LeftoverKind.PART, path=Path(f"part {number}"), image_id=image_id(number))
        for number in (1, 2)
    )
    made = plan(
        catalog_state(base(1), cached_image(1, 1)),
        files_state(found_base(base(1)), leftovers=parts),
    )
    assert made == DriftPlan(remove_files=tuple(part.path for part in parts))


def test_templates_stay_with_their_base() -> None:
    """A template serves for as long as its base is there, a blank one until the next start."""
    kept = (
        Leftover(kind=LeftoverKind.TEMPLATE, path=Path("1"), base_id=base_id(1), format=QCOW2),
        Leftover(kind=LeftoverKind.TEMPLATE, path=Path("2"), base_id=base_id(2), format=QCOW2),
    )
    blank = Leftover(kind=LeftoverKind.TEMPLATE, path=Path("blank"), format=QCOW2)
    gone = replace(kept[0], path=Path("3"), base_id=base_id(3))
    files = files_state(found_base(base(1)), found_base(base(2)), leftovers=(*kept, blank, gone))
    assert plan(catalog_state(base(1)), files).remove_files == (blank.path, gone.path)


def test_unfinished_files_are_removed_and_unknown_ones_are_not() -> None:
    """What a crash left half written is ours to remove; what is not ours is only reported."""
    unfinished = Leftover(kind=LeftoverKind.UNFINISHED, path=Path("unfinished"))
    made = plan(catalog_state(), files_state(leftovers=(unfinished,), unknown=(Path("other"),)))
    assert made == DriftPlan(remove_files=(unfinished.path,), unknown=(Path("other"),))


# --- while requests are served --------


BUSY = Running(
    images=frozenset({image_id(1)}), disks=frozenset({KEY}), bases=frozenset({base_id(1)})
)


@pytest.mark.parametrize(
    ("catalog", "files"),
    [
        (catalog_state(base(1)), files_state()),
        (catalog_state(base(1, state=BaseState.EVICTING)), files_state()),
        (catalog_state(base(1, state=BaseState.EVICTING)), files_state(found_base(base(1)))),
        (catalog_state(base(1, state=BaseState.QUARANTINED)), files_state(found_base(base(1)))),
        (catalog_state(), files_state(found_base(base(1)))),
        (catalog_state(), files_state(replace(found_base(base(1)), manifest=None))),
        (catalog_state(), files_state(leftovers=trashed(1), wanted_trash=(found_base(base(1)),))),
        (catalog_state(disk(KEY, None, state=DiskState.PENDING)), files_state()),
        (catalog_state(disk(KEY, None)), files_state()),
        (catalog_state(), files_state(found_overlay())),
    ],
    ids=[
        *("missing", "going", "coming back", "damaged", "new", "unproved", "in the trash"),
        *("pending", "deleted", "made"),
    ],
)
def test_what_is_worked_on_is_left_alone(catalog: CatalogState, files: FilesState) -> None:
    """Whoever holds a base, or makes a disk, puts rows and files right by himself."""
    assert plan(catalog, files, BUSY) == NOTHING


def test_files_of_what_is_worked_on_are_left_alone() -> None:
    """A download that runs has parts, a disk that is made an unfinished file."""
    files = (
        Leftover(kind=LeftoverKind.PART, path=Path("part"), image_id=image_id(1)),
        Leftover(kind=LeftoverKind.CONVERSION, path=Path("converted"), image_id=image_id(1)),
        Leftover(kind=LeftoverKind.UNFINISHED, path=Path("disk"), key=KEY),
        Leftover(kind=LeftoverKind.UNFINISHED, path=Path("manifest"), base_id=base_id(1)),
    )
    others = (
        replace(files[0], path=Path("another part"), image_id=image_id(2)),
        replace(files[2], path=Path("another disk"), key=disk_key(2)),
    )
    made = plan(catalog_state(), files_state(leftovers=(*files, *others)), BUSY)
    assert made == DriftPlan(remove_files=tuple(each.path for each in others))


def test_a_blank_template_stays_while_disks_may_be_cloned_from_it() -> None:
    """Only a start removes those, when nobody can be about to use one."""
    blank = Leftover(kind=LeftoverKind.TEMPLATE, path=Path("blank"), format=QCOW2)
    assert plan(catalog_state(), files_state(leftovers=(blank,)), Running()) == NOTHING


# --- the plan -----------------------------------------------------------------------------------


def test_differences_are_counted_by_kind() -> None:
    """Each difference counts once, under a kind that the metric knows from the start."""
    path = Path("x")
    finished = FinishedDisk(key=KEY, virtual_size=1)
    made = DriftPlan(
        restore_bases=((base_id(5), RAW),),
        quarantine_bases=((base_id(6), RAW),),
        drop_base_rows=(base_id(1),),
        lost_bases=(base_id(4),),
        write_manifests=(base_id(7),),
        finish_evictions=(base_id(2),),
        revert_evictions=(base_id(3),),
        drop_disk_rows=(KEY,) * 2,
        adopt_bases=(base(1),) * 3,
        adopt_disks=(disk(KEY, 1),) * 4,
        finish_disks=(finished,),
        fail_disks=(KEY,) * 2,
        remove_files=(path,) * 6,
        strays=(path,),
        unknown=(path,) * 6,
        doubtful_disks=(KEY,) * 9,
    )
    assert made.counts() == {
        "base_missing": 2,
        "disk_missing": 2,
        "base_unlisted": 3,
        "disk_unlisted": 4,
        "state_stale": 8,
        "ingest_stale": 6,
        "unknown_file": 7,
        "doubt": 9,
    }
    assert set(made.counts()) == set(metrics.DRIFT_KINDS)


def test_plans_add_up() -> None:
    """What was mended one by one is told as one plan."""
    one = DriftPlan(drop_base_rows=(base_id(1),), fail_disks=(KEY,))
    other = DriftPlan(drop_base_rows=(base_id(2),))
    assert merged([one, other]) == DriftPlan(
        drop_base_rows=(base_id(1), base_id(2)), fail_disks=(KEY,)
    )
    assert merged([]) == NOTHING
