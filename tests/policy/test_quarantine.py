"""What stays in quarantine, and what goes: by the operator's bounds, and before any base."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.model import Standing
from cacheagent.policy.eviction import (
    Demand,
    DemandKind,
    EvictionPolicy,
    Reason,
    Snapshot,
    plan_eviction,
)
from cacheagent.policy.layout import refused_name
from cacheagent.policy.quarantine import (
    MOST,
    Contents,
    QuarantineBounds,
    Refused,
    for_room,
    overdue,
)
from tests.fakes.values import NOW, image_id
from tests.policy.caches import LAX, cache, held, idle_by, numbers
from tests.policy.test_eviction_properties import ANYWAY, demands, policies, snapshots

BOUNDS = QuarantineBounds(max_size=300, max_age=3600)


def refused(number: int, minutes: float, size: int = 100) -> Refused:
    """Give an image that was refused so many minutes ago."""
    at = NOW - timedelta(minutes=minutes)
    return Refused(name=refused_name(image_id(number), at, "corrupt"), allocated=size)


def with_refused(snapshot: Snapshot, *files: Refused) -> Snapshot:
    """Put them into the cache: their bytes are of the cache, as measured."""
    size = sum(each.allocated for each in files)
    return replace(snapshot, refused=files, cache_bytes=snapshot.cache_bytes + size)


def test_what_is_within_the_bounds_stays() -> None:
    """An operator has time to look at what was refused."""
    found = Contents(refused=(refused(1, 10), refused(2, 20), refused(3, 59)))
    assert overdue(found, BOUNDS, NOW) == ()
    assert found.allocated == 300


def test_the_oldest_go_first_when_there_is_too_much() -> None:
    """The newest stay, as many as there is room for, beside the damaged bases."""
    new, middle, old = refused(1, 1), refused(2, 2), refused(3, 3)
    assert overdue(Contents(refused=(old, new, middle), damaged=150), BOUNDS, NOW) == (old, middle)
    assert overdue(Contents(refused=(old, new, middle), damaged=301), BOUNDS, NOW) == (
        *(old, middle),
        new,
    )


def test_a_file_larger_than_the_bound_costs_no_other_its_place() -> None:
    """Where the bound was lowered, only what no longer fits goes."""
    large, small = refused(1, 1, 301), refused(2, 2)
    assert overdue(Contents(refused=(large, small)), BOUNDS, NOW) == (large,)


@pytest.mark.parametrize(("max_age", "going"), [(3600, [2]), (0, [])])
def test_what_lies_there_for_long_goes(max_age: int, going: list[int]) -> None:
    """An age of 0 is no bound."""
    found = Contents(refused=(refused(1, 59), refused(2, 60)))
    gone = overdue(found, replace(BOUNDS, max_age=max_age), NOW)
    assert [each.name.image_id for each in gone] == [image_id(number) for number in going]


def test_of_one_image_the_newest_refusal_is_kept() -> None:
    """Whoever asks for a bad image again and again fills nothing."""
    again = tuple(refused(1, minutes, 1) for minutes in range(1, 20))
    assert set(overdue(Contents(refused=again), BOUNDS, NOW)) == set(again[1:])


def test_many_small_files_are_bounded_too() -> None:
    """A tenant with thousands of tiny bad images uses up neither inodes nor lists."""
    many = tuple(refused(number, number / 100, 0) for number in range(MOST + 5))
    gone = overdue(Contents(refused=many), BOUNDS, NOW)
    assert set(gone) == set(many[MOST:])


def test_without_room_nothing_is_kept() -> None:
    """A bound of 0 turns the quarantine off."""
    assert len(overdue(Contents(refused=(refused(1, 1),)), replace(BOUNDS, max_size=0), NOW)) == 1


def test_just_enough_goes_for_room() -> None:
    """The oldest first, for bytes as for inodes."""
    new, old = refused(1, 1), refused(2, 2)
    assert for_room((new, old), 0, 0) == ()
    assert for_room((new, old), 100, 0) == (old,)
    assert for_room((new, old), 101, 0) == (old, new)
    assert for_room((new, old), 0, 3) == (old, new)


@pytest.mark.parametrize(
    ("size", "dropped", "going"), [(400, 0, []), (401, 1, []), (600, 2, []), (601, 2, [1])]
)
def test_a_download_gets_its_room_from_the_quarantine_first(
    size: int, dropped: int, going: list[int]
) -> None:
    """No base goes for a download while a refused image could make the room."""
    snapshot = with_refused(cache(idle_by(60, 1), available=400), refused(1, 1), refused(2, 2))
    plan = plan_eviction(snapshot, LAX, NOW, Demand(DemandKind.ROOM, size))
    ids = [each.name.image_id for each in plan.drop]
    assert ids == [image_id(2), image_id(1)][:dropped]
    assert numbers(plan) == going


def test_what_never_fits_costs_no_refused_image_either() -> None:
    """Nothing goes for a download that all of it would not make room for."""
    snapshot = with_refused(cache(idle_by(60, 1), available=400), refused(1, 1))
    plan = plan_eviction(snapshot, LAX, NOW, Demand(DemandKind.ROOM, 601))
    assert (plan.drop, plan.evict) == ((), ())


def test_what_goes_anyway_spares_the_quarantine() -> None:
    """A base that nobody is to have makes the room before a file that somebody may look at."""
    gone = held(1, standings=(Standing.GONE,))
    snapshot = with_refused(cache(gone, available=400), refused(1, 1))
    plan = plan_eviction(snapshot, LAX, NOW, Demand(DemandKind.ROOM, 500))
    assert (plan.drop, numbers(plan)) == ((), [1])


@given(
    snapshot=snapshots(),
    policy=policies(),
    demand=demands,
    sizes=st.lists(st.integers(0, 100), max_size=4),
)
def test_no_base_goes_for_room_that_the_quarantine_has(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None, sizes: list[int]
) -> None:
    """Whatever is short: while a refused image stays, no base goes but those that go anyway."""
    files = tuple(refused(number, number, size) for number, size in enumerate(sizes))
    plan = plan_eviction(with_refused(snapshot, *files), policy, NOW, demand)
    for_shortage = [each for each in plan.evict if each.reason not in {*ANYWAY, Reason.MIN_FREE}]
    assert not for_shortage or set(plan.drop) == set(files)
