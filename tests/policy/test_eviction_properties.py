"""What holds for every plan of eviction, whatever the cache, the bounds and the demand."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from cacheagent.model import BaseState, SpaceUsage, Standing, User, UserKind
from cacheagent.policy.eviction import (
    BASE_INODES,
    BaseUse,
    Demand,
    DemandKind,
    EvictionPlan,
    EvictionPolicy,
    Reason,
    Rule,
    Snapshot,
    last_use,
    plan_eviction,
    shortages,
)
from tests.fakes.values import NOW
from tests.policy.caches import TOTAL, cache, held

ANYWAY = {Reason.DAMAGED, Reason.IMAGE_GONE, Reason.MAX_IDLE}
"""Reasons that ask for no shortage."""

OWN = {Reason.MAX_SIZE, Reason.OPERATOR, *ANYWAY}
"""Reasons that are not because of other files."""

FREE = 300
"""Bytes of the file system that no base takes, so that one can be full and hold the cache."""

minutes = st.integers(-30, 300).map(lambda number: timedelta(minutes=number))
users = st.lists(st.builds(User, kind=st.sampled_from(UserKind)), max_size=1).map(tuple)
bases = st.tuples(
    minutes,
    minutes,
    st.integers(0, 100),
    st.one_of(st.just(()), users),
    st.lists(st.sampled_from(Standing), max_size=2).map(tuple),
    st.sampled_from([BaseState.READY, BaseState.READY, BaseState.QUARANTINED, BaseState.EVICTING]),
)
demands = st.none() | st.builds(
    Demand, st.sampled_from(DemandKind), st.integers(0, 500), st.booleans()
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Give a cache of up to eight bases, on a file system that other files share."""
    uses = []
    for number, (came, used, size, held_by, standings, state) in enumerate(
        draw(st.lists(bases, max_size=8))
    ):
        use = held(number, size=size, idle=used, users=held_by, standings=standings, state=state)
        uses.append(replace(use, base=replace(use.base, fetched_at=NOW - came)))
    taken = sum(use.base.allocated for use in uses)
    inodes = draw(st.sampled_from([0, 60]))
    return cache(
        *uses,
        available=draw(st.integers(0, min(TOTAL - taken, FREE))),
        reserved=draw(st.integers(0, 100)),
        cache_reserved=draw(st.integers(0, 50)),
        inodes=(inodes, draw(st.integers(0, inodes))),
    )


@st.composite
def policies(draw: st.DrawFn) -> EvictionPolicy:
    """Give bounds as a configuration may set them."""
    high = draw(st.integers(1, 100))
    return EvictionPolicy(
        max_size=draw(st.none() | st.integers(0, 500)),
        high_watermark=high,
        low_watermark=draw(st.integers(0, high - 1)),
        min_free=draw(st.integers(0, 300)),
        min_keep=draw(st.integers(0, 300)),
        min_age=draw(st.sampled_from([0, 600, 3600])),
        max_idle=draw(st.sampled_from([0, 1800, 7200])),
    )


def _by_id(snapshot: Snapshot) -> dict[str, BaseUse]:
    return {use.base.base_id: use for use in snapshot.bases}


def _carried_out(snapshot: Snapshot, plan: EvictionPlan) -> Snapshot:
    """Give what is there when all that the plan names has gone."""
    gone = {each.base.base_id for each in plan.evict}
    space = snapshot.space
    return replace(
        snapshot,
        bases=tuple(use for use in snapshot.bases if use.base.base_id not in gone),
        cache_bytes=snapshot.cache_bytes - plan.freed_bytes,
        space=SpaceUsage(
            total=space.total,
            available=space.available + plan.freed_bytes,
            inodes=space.inodes,
            inodes_available=space.inodes_available + BASE_INODES * len(gone) * bool(space.inodes),
        ),
    )


@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_what_is_held_never_goes(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """No base goes that anybody uses, or that may be in use, or that is younger than allowed."""
    uses = _by_id(snapshot)
    for each in plan_eviction(snapshot, policy, NOW, demand).evict:
        assert uses[each.base.base_id].users == ()
        age = (NOW - max(each.base.last_used_at, each.base.fetched_at)).total_seconds()
        assert max(age, 0) >= policy.min_age or each.reason is Reason.DAMAGED


@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_every_base_is_told_once(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """Each base either goes or stays; who stays has a reason, and no place is given twice."""
    plan = plan_eviction(snapshot, policy, NOW, demand)
    told = [each.base.base_id for each in plan.evict]
    told += [each.base.base_id for each in plan.stay]
    assert sorted(told) == sorted(_by_id(snapshot))
    assert all(each.users or each.rules for each in plan.stay)
    places = [each.position for each in plan.stay if each.position is not None]
    assert len(set(places)) == len(places)
    assert set(places) <= set(range(1, len(told) + 1))


@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_for_room_the_longest_idle_goes_first(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """Of those that go for room, none was used before the one in front; the larger is in front."""
    plan = plan_eviction(snapshot, policy, NOW, demand)
    going = [each.base for each in plan.evict if each.reason not in ANYWAY]
    order = [(last_use(base, NOW), -base.allocated) for base in going]
    assert order == sorted(order)


@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_just_enough_goes(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """Without the last base that goes for room, something would still be short."""
    plan = plan_eviction(snapshot, policy, NOW, demand)
    if not plan.evict or plan.evict[-1].reason in ANYWAY:
        return
    spared = plan.freed_bytes - plan.evict[-1].frees
    needed = max((each.size for each in shortages(snapshot, policy, demand)), default=0)
    files = BASE_INODES * (len(plan.evict) - 1)
    share = -(-snapshot.space.inodes * policy.min_free // snapshot.space.total)
    assert spared < needed or files < share - snapshot.space.inodes_available


@given(snapshot=snapshots(), policy=policies(), size=st.integers(1, 1200), cached=st.booleans())
def test_what_cannot_fit_evicts_nothing(
    snapshot: Snapshot,
    policy: EvictionPolicy,
    size: int,
    cached: bool,  # noqa: FBT001 -- hypothesis passes by name
) -> None:
    """A download for which all that may go is too little costs nobody a base."""
    plan = plan_eviction(snapshot, policy, NOW, Demand(DemandKind.ROOM, size, cached))
    assert not (plan.unmet_bytes and plan.evict)
    assert (plan.unmet_bytes == 0) or not any(Rule.NOT_NEEDED in each.rules for each in plan.stay)


@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_other_files_leave_the_cache_its_keep(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """No base goes because of other files that would bring the cache below ``min_keep``."""
    kept = snapshot.cache_bytes
    if demand is not None and demand.kind is DemandKind.ROOM and demand.cached:
        kept += demand.size
    for each in plan_eviction(snapshot, policy, NOW, demand).evict:
        kept -= each.frees
        assert each.reason in OWN or kept >= policy.min_keep


@settings(max_examples=400)
@given(snapshot=snapshots(), policy=policies(), demand=demands)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    snapshot: Snapshot, policy: EvictionPolicy, demand: Demand | None
) -> None:
    """The next plan evicts nothing more, where this one is enough."""
    plan = plan_eviction(snapshot, policy, NOW, demand)
    if plan.unmet_bytes or plan.unmet_inodes:
        return
    still = demand if demand is not None and demand.kind is DemandKind.ROOM else None
    again = plan_eviction(_carried_out(snapshot, plan), policy, NOW, still)
    assert again.evict == ()


@given(snapshot=snapshots(), policy=policies(), back=st.integers(0, 600))
def test_a_clock_that_is_set_back_makes_nothing_older(
    snapshot: Snapshot, policy: EvictionPolicy, back: int
) -> None:
    """What was young stays young, and what was not idle for too long is not so either."""
    earlier = NOW - timedelta(minutes=back)
    for use in snapshot.bases:
        age = earlier - last_use(use.base, earlier)
        assert timedelta(0) <= age <= NOW - last_use(use.base, NOW)
    before = {
        each.base.base_id
        for each in plan_eviction(snapshot, policy, NOW).evict
        if each.reason is Reason.MAX_IDLE
    }
    after = {
        each.base.base_id
        for each in plan_eviction(snapshot, policy, earlier).evict
        if each.reason is Reason.MAX_IDLE
    }
    assert after <= before
