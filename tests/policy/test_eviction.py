"""What goes from a cache, why, and how much of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cacheagent.model import BaseState, SpaceUsage, Standing
from cacheagent.policy.eviction import Demand, DemandKind, Rule, last_use, plan_eviction, watermark
from tests.fakes.values import NOW, base, image_id
from tests.policy.caches import LAX, PIN, cache, held, idle_by, numbers, reasons

OLDEST_LAST = (idle_by(60, 1), idle_by(120, 2), idle_by(180, 3))
"""Three bases of 100 bytes: the third was used longest ago, the first last."""

WATERMARKS = replace(LAX, high_watermark=85, low_watermark=75)
ROOM, FULL, OPERATOR = DemandKind.ROOM, DemandKind.FULL, DemandKind.OPERATOR


def test_a_cache_within_its_bounds_is_left_alone() -> None:
    """Where nothing is short, every base stays, and that is what it is told."""
    plan = plan_eviction(cache(*OLDEST_LAST), WATERMARKS, NOW)
    assert plan.evict == ()
    assert [each.rules for each in plan.stay] == [(Rule.NOT_NEEDED,)] * 3
    assert (plan.needed_bytes, plan.unmet_bytes, plan.unmet_inodes) == (0, 0, 0)


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_size", "going"), [(300, []), (299, [3]), (200, [3]), (199, [3, 2])])
def test_a_cache_above_its_size_loses_the_longest_idle(max_size: int, going: list[int]) -> None:
    """``max_size`` is met by as many bases as it takes, and the rest stays."""
    plan = plan_eviction(cache(*OLDEST_LAST), replace(LAX, max_size=max_size), NOW)
    assert numbers(plan) == going
    assert set(reasons(plan)) <= {"max_size"}
    assert plan.needed_bytes == 300 - max_size
    assert plan.freed_bytes == 100 * len(going)


def test_what_is_being_downloaded_counts_for_the_size() -> None:
    """Bytes that running downloads will add are cache already, those of disks are not."""
    coming = cache(*OLDEST_LAST, reserved=250, cache_reserved=150)
    assert numbers(plan_eviction(coming, replace(LAX, max_size=300), NOW)) == [3, 2]


@pytest.mark.parametrize(
    ("available", "going"), [(250, []), (151, []), (150, []), (149, [3, 2]), (0, [3, 2, 1])]
)
def test_above_the_high_watermark_it_goes_on_to_the_low_one(
    available: int, going: list[int]
) -> None:
    """Between the watermarks nothing happens; above the high one, all down to the low one."""
    plan = plan_eviction(cache(*OLDEST_LAST, available=available), WATERMARKS, NOW)
    assert numbers(plan) == going
    assert set(reasons(plan)) <= {"high_watermark"}


@pytest.mark.parametrize(
    ("min_free", "low", "going"),
    [(100, 75, []), (101, 100, [3]), (201, 100, [3, 2]), (101, 75, [3, 2])],
)
def test_too_little_free_goes_on_to_the_low_watermark(
    min_free: int, low: float, going: list[int]
) -> None:
    """``min_free`` begins an eviction that ends where both it and the low watermark are met."""
    policy = replace(LAX, min_free=min_free, low_watermark=low)
    plan = plan_eviction(cache(*OLDEST_LAST, available=100), policy, NOW)
    assert numbers(plan) == going
    assert set(reasons(plan)) <= {"min_free"}


@pytest.mark.parametrize(("left", "going"), [(20, []), (19, [3]), (18, [3]), (17, [3, 2])])
def test_files_run_out_like_bytes_do(left: int, going: list[int]) -> None:
    """The share of the bytes that stays free stays free of files too; a base is two of them."""
    policy = replace(LAX, min_free=100)
    plan = plan_eviction(cache(*OLDEST_LAST, inodes=(200, left)), policy, NOW)
    assert numbers(plan) == going
    assert set(reasons(plan)) <= {"min_free"}
    assert plan.unmet_inodes == 0


def test_files_that_others_use_up_cost_no_base() -> None:
    """Where all bases together would not give files enough, none goes for it, and that is told."""
    policy = replace(LAX, min_free=100)
    plan = plan_eviction(cache(*OLDEST_LAST, inodes=(200, 13)), policy, NOW)
    assert (plan.evict, plan.unmet_inodes) == ((), 7)
    plan = plan_eviction(cache(*OLDEST_LAST, inodes=(200, 13)), replace(policy, max_size=200), NOW)
    assert (numbers(plan), plan.unmet_inodes) == ([3], 5)


def test_a_file_system_without_a_limit_of_files_has_enough() -> None:
    """Some file systems count no files; and an empty answer asks for nothing either."""
    policy = replace(LAX, min_free=100)
    assert plan_eviction(cache(*OLDEST_LAST), policy, NOW).evict == ()
    nothing = replace(cache(), space=SpaceUsage(total=0, available=0, inodes=10))
    assert plan_eviction(nothing, LAX, NOW).unmet_inodes == 0


def test_watermarks_are_bytes_in_use() -> None:
    """A percentage becomes bytes, rounded down."""
    assert [watermark(percent, 999) for percent in (0, 85, 100)] == [0, 849, 999]


# --- bases that go though there is room ---------------------------------------------------------


@pytest.mark.parametrize(("days", "going"), [(6.99, []), (7, ["max_idle"])])
def test_a_base_that_was_idle_for_long_goes(days: float, going: list[str]) -> None:
    """``max_idle`` needs no shortage."""
    policy = replace(LAX, max_idle=7 * 86400)
    assert reasons(plan_eviction(cache(idle_by(days * 1440)), policy, NOW)) == going


def test_without_max_idle_a_base_may_be_idle_for_ever() -> None:
    """0 is never."""
    plan = plan_eviction(cache(idle_by(1e6)), LAX, NOW)
    assert [(each.wanted, each.idle_at) for each in plan.stay] == [(None, None)]


@pytest.mark.parametrize(
    ("standings", "going"),
    [
        ((Standing.ACTIVE,), []),
        ((Standing.GONE,), ["image_gone"]),
        ((Standing.DEACTIVATED,), ["image_gone"]),
        ((Standing.CHANGED,), ["image_gone"]),
        ((Standing.GONE, Standing.DEACTIVATED), ["image_gone"]),
        ((Standing.GONE, Standing.ACTIVE), []),
        ((), []),
    ],
)
def test_a_base_goes_with_the_last_image_that_glance_hands_out(
    standings: tuple[Standing, ...], going: list[str]
) -> None:
    """One active image keeps a base; one that no image stands for waits for its turn."""
    plan = plan_eviction(cache(held(1, standings=standings)), LAX, NOW)
    assert reasons(plan) == going


def test_a_damaged_base_goes_however_young() -> None:
    """Nobody is to get it again; still, while it is in use it stays."""
    young = timedelta(0)
    plan = plan_eviction(
        cache(
            held(1, state=BaseState.QUARANTINED, idle=young),
            held(2, state=BaseState.QUARANTINED, users=(PIN,)),
        ),
        LAX,
        NOW,
    )
    assert (numbers(plan), reasons(plan)) == ([1], ["damaged"])


def test_what_goes_anyway_spares_the_others() -> None:
    """A base that is gone from Glance goes before one that was idle longer, and may be enough."""
    gone = held(1, idle=timedelta(hours=1), standings=(Standing.GONE,))
    plan = plan_eviction(cache(gone, idle_by(600, 2)), replace(LAX, max_size=150), NOW)
    assert (numbers(plan), reasons(plan)) == ([1], ["image_gone"])
    assert plan.evict[0].images == (image_id(10),)


# --- the order ----------------------------------------------------------------------------------


def test_of_equal_age_the_larger_goes_first() -> None:
    """What frees more is given up first; and equal bases go in an order that never changes."""
    bases = (idle_by(60, 1, 50), idle_by(60, 4, 70), idle_by(60, 3, 70), idle_by(61, 2, 10))
    plan = plan_eviction(cache(*bases), LAX, NOW, Demand(OPERATOR, 1000))
    assert numbers(plan) == [2, 3, 4, 1]


def test_the_last_use_is_the_later_of_arrival_and_use() -> None:
    """A base that came after its last use, say fetched anew, is as young as its file."""
    came, used = NOW - timedelta(hours=1), NOW - timedelta(hours=2)
    assert last_use(base(1, fetched_at=came, last_used_at=used), NOW) == came
    assert last_use(base(1, fetched_at=used, last_used_at=came), NOW) == came


def test_a_clock_that_was_set_back_makes_no_base_old() -> None:
    """A use that lies in the future was just now."""
    assert last_use(base(1, last_used_at=NOW + timedelta(days=1)), NOW) == NOW
    coming = cache(idle_by(-1e5))
    plan = plan_eviction(coming, replace(LAX, max_idle=1), NOW, Demand(OPERATOR, 1))
    assert [each.rules for each in plan.stay] == [(Rule.MIN_AGE,)]
    assert plan.stay[0].free_at == NOW + timedelta(minutes=10)


# --- demands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "going"), [(0, []), (1, [3]), (150, [3, 2]), (9000, [3, 2, 1])])
def test_an_operator_gets_what_may_go(size: int, going: list[int]) -> None:
    """So many bytes are freed, or all that may go where there is less."""
    plan = plan_eviction(cache(*OLDEST_LAST), LAX, NOW, Demand(OPERATOR, size))
    assert numbers(plan) == going
    assert set(reasons(plan)) <= {"operator"}
    assert plan.unmet_bytes == max(0, size - 300)


@pytest.mark.parametrize(("size", "going"), [(400, []), (401, [3]), (501, [3, 2])])
def test_a_download_gets_just_enough_room(size: int, going: list[int]) -> None:
    """What fits beside ``min_free`` and what others have reserved evicts nothing."""
    policy = replace(LAX, min_free=60)
    plan = plan_eviction(
        cache(*OLDEST_LAST, available=500, reserved=40), policy, NOW, Demand(ROOM, size)
    )
    assert numbers(plan) == going


def test_what_never_fits_costs_no_base() -> None:
    """Nothing goes for a download that all of the cache would not make room for."""
    young = held(4, idle=timedelta(minutes=5))
    gone = held(5, idle=timedelta(minutes=5), standings=(Standing.GONE,))
    plan = plan_eviction(
        cache(*OLDEST_LAST, young, gone, available=100), LAX, NOW, Demand(ROOM, 401)
    )
    assert (plan.evict, plan.unmet_bytes) == ((), 1)
    never = [each for each in plan.stay if each.rules == (Rule.NEVER_FITS,)]
    assert len(never) == 3
    assert sorted(each.position or 0 for each in plan.stay) == [1, 2, 3, 4, 5]
    assert (
        plan_eviction(cache(*OLDEST_LAST, available=100), LAX, NOW, Demand(ROOM, 400)).unmet_bytes
        == 0
    )


def test_a_download_beyond_the_size_of_the_cache_never_fits() -> None:
    """An image that is larger than ``max_size`` costs no base, however empty the disk is."""
    plan = plan_eviction(cache(*OLDEST_LAST), replace(LAX, max_size=400), NOW, Demand(ROOM, 401))
    assert (plan.evict, plan.unmet_bytes) == ((), 1)


@pytest.mark.parametrize(("cached", "going"), [(True, [3]), (False, [])])
def test_disks_do_not_count_for_the_size_of_the_cache(
    cached: bool,  # noqa: FBT001 -- a row of the table
    going: list[int],
) -> None:
    """A full copy takes room, and none of the cache's share."""
    plan = plan_eviction(
        cache(*OLDEST_LAST), replace(LAX, max_size=350), NOW, Demand(ROOM, 100, cached)
    )
    assert numbers(plan) == going


def test_a_watermark_is_tried_for_and_refuses_no_download() -> None:
    """A download that crosses the high watermark evicts what it can, and comes in all the same."""
    policy = replace(WATERMARKS, min_age=0)
    crossing = plan_eviction(cache(idle_by(60), available=250), policy, NOW, Demand(ROOM, 150))
    assert (reasons(crossing), crossing.unmet_bytes) == (["high_watermark"], 0)
    above = plan_eviction(cache(idle_by(60), available=140), policy, NOW, Demand(ROOM, 30))
    assert (reasons(above), above.unmet_bytes) == (["high_watermark"], 0)


def test_a_download_above_the_watermark_gets_its_bytes_below_it() -> None:
    """Who evicts for a download counts what the download will add."""
    bases = tuple(idle_by(60 + number, number) for number in range(1, 8))
    plan = plan_eviction(cache(*bases, available=140), WATERMARKS, NOW, Demand(ROOM, 300))
    assert plan.freed_bytes == 400
    after = cache(*(each for each in bases[:3]), available=540)
    assert plan_eviction(after, WATERMARKS, NOW, Demand(ROOM, 300)).evict == ()


def test_a_full_disk_gets_room_beside_what_is_free() -> None:
    """A write that found no room has it afterwards, whatever the file system says is free."""
    plan = plan_eviction(cache(*OLDEST_LAST, available=500), LAX, NOW, Demand(FULL, 150))
    assert (numbers(plan), reasons(plan)) == ([3, 2], ["room", "room"])
