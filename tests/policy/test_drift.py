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
    DiskMode,
)
from cacheagent.policy.drift import DriftPlan, FinishedDisk, FoundBase, FoundDisk
from cacheagent.policy.inventory import Leftover, LeftoverKind
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
    """What nobody verified is left alone, whatever its name says."""
    found = replace(found_base(base(1)), manifest=manifest)
    made = plan(catalog_state(), files_state(found))
    assert made == DriftPlan(strays=(LAYOUT.base(base_id(1), RAW),))


def test_a_base_that_is_known_needs_no_manifest() -> None:
    """A manifest that was lost takes no base away."""
    found = replace(found_base(base(1)), manifest=None)
    assert plan(catalog_state(base(1)), files_state(found)) == NOTHING


def test_a_base_without_its_file_is_dropped() -> None:
    """A row that promises a file that is gone goes, and its images with it."""
    made = plan(
        catalog_state(base(1), cached_image(1, 1), disk(KEY, 1)), files_state(found_overlay())
    )
    assert made == DriftPlan(drop_base_rows=(base_id(1),))


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
        Leftover(kind=LeftoverKind.TRASH, path=LAYOUT.trashed(base_id(1), RAW)),
    )
    row = base(1, state=BaseState.EVICTING)
    made = plan(catalog_state(row), files_state(leftovers=leftovers))
    assert made == DriftPlan(
        finish_evictions=(base_id(1),),
        remove_files=tuple(leftover.path for leftover in leftovers),
    )


@pytest.mark.parametrize("found", [(), (found_base(base(1)),)])
def test_a_quarantined_base_stays_what_it_is(found: tuple[FoundBase, ...]) -> None:
    """What failed verification is no base again, wherever its file lies; its manifest stays."""
    manifest = Leftover(kind=LeftoverKind.MANIFEST, path=Path("m"), base_id=base_id(1), format=RAW)
    row = base(1, state=BaseState.QUARANTINED)
    assert plan(catalog_state(row), files_state(*found, leftovers=(manifest,))) == NOTHING


def test_where_the_bases_cannot_be_read_all_rows_stay() -> None:
    """A folder that cannot be read is no reason to forget a base, nor to remove a template."""
    template = Leftover(
        kind=LeftoverKind.TEMPLATE, path=Path("t"), base_id=base_id(3), format=QCOW2
    )
    catalog = catalog_state(base(1), base(2, state=BaseState.EVICTING))
    assert plan(catalog, files_state(leftovers=(template,), bases_readable=False)) == NOTHING


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


# --- the plan -----------------------------------------------------------------------------------


def test_differences_are_counted_by_kind() -> None:
    """Each difference counts once, under a kind that the metric knows from the start."""
    path = Path("x")
    finished = FinishedDisk(key=KEY, virtual_size=1)
    made = DriftPlan(
        drop_base_rows=(base_id(1),),
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
    )
    assert made.counts() == {
        "base_missing": 1,
        "disk_missing": 2,
        "base_unlisted": 3,
        "disk_unlisted": 4,
        "state_stale": 5,
        "ingest_stale": 6,
        "unknown_file": 7,
    }
    assert set(made.counts()) == set(metrics.DRIFT_KINDS)
