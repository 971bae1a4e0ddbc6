"""What stays in a cache though room is short, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cacheagent.model import Standing, User, UserKind
from cacheagent.policy.eviction import Demand, DemandKind, Reason, Rule, plan_eviction
from tests.fakes.values import NOW, image_id
from tests.policy.caches import LAX, PIN, cache, held, idle_by, numbers, reasons

ALL = Demand(DemandKind.OPERATOR, 1 << 60)
MINUTE = timedelta(minutes=1)
THREE = (idle_by(60, 1), idle_by(120, 2), idle_by(180, 3))


@pytest.mark.parametrize("kind", UserKind)
@pytest.mark.parametrize("standing", Standing)
def test_whoever_uses_a_base_keeps_it(kind: UserKind, standing: Standing) -> None:
    """Every kind of use, and a doubt, keeps a base, whatever is short and whatever Glance says."""
    user = User(kind=kind, detail="somebody")
    used = held(1, idle=timedelta(days=365), users=(user,), standings=(standing,))
    policy = replace(LAX, max_size=0, min_free=1000, max_idle=1, min_age=0)
    plan = plan_eviction(cache(used, available=0), policy, NOW, ALL)
    assert plan.evict == ()
    (stay,) = plan.stay
    assert (stay.users, stay.position, stay.idle_at) == ((user,), None, None)
    assert stay.images == (image_id(10),)


@pytest.mark.parametrize(("minutes", "going"), [(9.9, []), (10, [1])])
def test_a_young_base_stays(minutes: float, going: list[int]) -> None:
    """``min_age`` holds until it has passed since the last use, also against an operator."""
    plan = plan_eviction(cache(idle_by(minutes)), LAX, NOW, ALL)
    assert numbers(plan) == going


@pytest.mark.parametrize(
    "demand", [None, ALL, Demand(DemandKind.FULL, 100), Demand(DemandKind.ROOM, 1)]
)
def test_nothing_makes_an_exception_for_a_young_base(demand: Demand | None) -> None:
    """Neither a bound nor a demand nor Glance's word takes what is younger than ``min_age``."""
    policy = replace(LAX, max_size=0, high_watermark=10, low_watermark=5, min_free=1000, max_idle=1)
    gone = held(2, idle=MINUTE, standings=(Standing.GONE,))
    plan = plan_eviction(cache(held(1, idle=MINUTE), gone, available=0), policy, NOW, demand)
    assert plan.evict == ()
    assert all(Rule.MIN_AGE in each.rules for each in plan.stay)
    assert [each.free_at for each in plan.stay] == [NOW + 9 * MINUTE] * 2


def test_other_files_never_bring_the_cache_below_its_keep() -> None:
    """Where others fill the disk, the cache shrinks to ``min_keep`` and says what is missing."""
    policy = replace(LAX, high_watermark=50, low_watermark=40, min_keep=200)
    plan = plan_eviction(cache(*THREE, available=0), policy, NOW)
    assert (numbers(plan), plan.unmet_bytes) == ([3], 500)
    assert [each.rules for each in plan.stay] == [(Rule.MIN_KEEP,)] * 2
    assert {each.wanted for each in plan.stay} == {Reason.HIGH_WATERMARK}


def test_a_base_that_is_too_large_for_the_keep_lets_a_smaller_one_go() -> None:
    """``min_keep`` holds for each base by itself."""
    policy = replace(LAX, min_free=400, min_keep=200)
    plan = plan_eviction(cache(idle_by(60, 1, 50), idle_by(120, 2, 200), available=0), policy, NOW)
    assert (numbers(plan), plan.unmet_bytes) == ([1], 350)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (replace(LAX, max_size=100, min_keep=300), "max_size"),
        (replace(LAX, max_idle=3600, min_keep=300), "max_idle"),
    ],
)
def test_bounds_of_the_cache_itself_go_below_the_keep(policy: object, reason: str) -> None:
    """``min_keep`` is held against other files only."""
    plan = plan_eviction(cache(*THREE), policy, NOW)  # type: ignore[arg-type]
    assert set(reasons(plan)) == {reason}


def test_an_operator_goes_below_the_keep_whatever_else_is_short() -> None:
    """All that may go goes when an operator says so, also while other files fill the disk."""
    policy = replace(LAX, high_watermark=50, low_watermark=40, min_free=900, min_keep=300)
    plan = plan_eviction(cache(*THREE, available=0), policy, NOW, ALL)
    assert (numbers(plan), reasons(plan)) == ([3, 2, 1], ["operator"] * 3)


@pytest.mark.parametrize(("cached", "going"), [(True, [3]), (False, [])])
def test_a_download_that_comes_counts_for_the_keep(
    cached: bool,  # noqa: FBT001 -- a row of the table
    going: list[int],
) -> None:
    """An image may take another's place at ``min_keep``; a disk is one of the other files."""
    policy = replace(LAX, min_keep=300)
    plan = plan_eviction(
        cache(*THREE, available=0), policy, NOW, Demand(DemandKind.ROOM, 100, cached)
    )
    assert numbers(plan) == going
    assert (plan.unmet_bytes == 0) == cached


def test_everything_that_keeps_a_base_is_told() -> None:
    """Who uses it, every rule that would hold it, and what it would have gone for."""
    used = held(1, idle=MINUTE, users=(PIN,))
    policy = replace(LAX, min_free=600, min_keep=100, max_idle=7200)
    (stay,) = plan_eviction(cache(used), policy, NOW).stay
    assert stay.users == (PIN,)
    assert stay.rules == (Rule.MIN_AGE, Rule.MIN_KEEP)
    assert stay.wanted is Reason.MIN_FREE
    assert stay.free_at == NOW + 9 * MINUTE


def test_the_place_in_the_order_counts_unused_bases() -> None:
    """Whoever asks why a base stays hears when its turn is, and when it goes for being idle."""
    used = held(4, idle=timedelta(hours=4), users=(PIN,))
    policy = replace(LAX, max_idle=86400)
    plan = plan_eviction(cache(*THREE, used), policy, NOW)
    places = {each.base.last_used_at: each.position for each in plan.stay}
    assert [places[NOW - timedelta(hours=hours)] for hours in (4, 3, 2, 1)] == [None, 1, 2, 3]
    assert plan.stay[-1].idle_at == NOW + timedelta(hours=23)


@pytest.mark.parametrize("seconds", [1e12, 1e30, float("inf")])
def test_durations_beyond_any_calendar_are_for_ever(seconds: float) -> None:
    """An operator who writes a million years gets a base that stays."""
    (stay,) = plan_eviction(
        cache(idle_by(60)), replace(LAX, min_age=seconds, max_idle=seconds), NOW, ALL
    ).stay
    assert stay.rules == (Rule.MIN_AGE,)
    assert stay.free_at == stay.idle_at == datetime(9999, 1, 1, tzinfo=UTC)
