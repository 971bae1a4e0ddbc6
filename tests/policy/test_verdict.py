"""What a plan says of one base, for people."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import BaseState, ImageState, ImageView
from cacheagent.policy.eviction import Reason, Rule, plan_eviction
from cacheagent.policy.verdict import Verdict, find_verdict, summary
from tests.fakes.values import NOW, base, base_id, glance_image
from tests.policy.caches import LAX, PIN, cache, held, idle_by

if TYPE_CHECKING:
    from cacheagent.policy.eviction import EvictionPolicy, Snapshot

VIEW = ImageView(
    image=glance_image(1),
    state=ImageState.READY,
    base=base(1),
    base_path=None,
    progress=None,
    pinned=False,
    users=(),
    error=None,
)


def said(number: int, snapshot: Snapshot, policy: EvictionPolicy = LAX) -> str:
    """Give the sentences about the base of this number."""
    verdict = find_verdict(plan_eviction(snapshot, policy, NOW), base_id(number))
    assert verdict is not None
    return summary(VIEW, verdict)


def test_places_are_those_of_the_order_of_eviction() -> None:
    """Who goes has the places that those who stay leave over; who is in use has none."""
    snapshot = cache(idle_by(60, 1), idle_by(5, 2), held(3, users=(PIN,)), idle_by(40, 4))
    policy = replace(LAX, max_size=100)
    plan = plan_eviction(snapshot, policy, NOW)
    verdicts = [find_verdict(plan, base_id(number)) for number in range(1, 5)]
    assert [(each.goes, each.position, each.unused) for each in verdicts if each] == [
        (True, 1, 3),
        (False, 3, 3),
        (False, None, 3),
        (True, 2, 3),
    ]
    assert find_verdict(plan, base_id(9)) is None


def test_who_goes_is_told_when_and_why() -> None:
    """The reason is a rule of the configuration, by its name."""
    snapshot = cache(idle_by(60, 1), idle_by(40, 2))
    assert said(1, snapshot, replace(LAX, max_size=100)) == (
        "It goes in the next pass, as number 1 of 2 in the order of eviction:"
        " the cache is larger than eviction.max_size."
    )


def test_who_is_in_use_stays_whatever_is_wanted() -> None:
    """The users are counted, and what would happen without them is told."""
    snapshot = cache(held(1, users=(PIN, PIN)))
    assert said(1, snapshot) == "It stays, because it is in use: 2 pins."
    assert said(1, snapshot, replace(LAX, max_size=50)) == (
        "It stays, because it is in use: 2 pins."
        " Otherwise it would have to go: the cache is larger than eviction.max_size."
    )


def test_who_is_not_needed_to_go_is_told_its_place() -> None:
    """And when it goes for being idle, where the operator has set that."""
    place = (
        "Nothing uses it, and it stays, because no room is needed,"
        " as number 2 of 2 in the order of eviction."
    )
    snapshot = cache(idle_by(60, 1), idle_by(30, 2))
    assert said(2, snapshot) == place
    idle = replace(LAX, max_idle=timedelta(hours=2).total_seconds())
    until = NOW + timedelta(minutes=90)
    assert said(2, snapshot, idle) == (
        f"{place} If nobody uses it, it goes at {until:%Y-%m-%d %H:%M} UTC for eviction.max_idle."
    )


def test_who_is_kept_by_rules_is_told_all_of_them() -> None:
    """An operator sees which key of the configuration holds a base."""
    policy = replace(LAX, min_free=600, min_keep=100)
    until = NOW + timedelta(minutes=7)
    assert said(1, cache(idle_by(3, 1)), policy) == (
        "It would have to go, because less than eviction.min_free is free, and stays, as number 1"
        f" of 1 in the order of eviction: eviction.min_age holds it until {until:%Y-%m-%d %H:%M}"
        " UTC, and without it less than eviction.min_keep would be left."
    )


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_words(reason: Reason) -> None:
    """No reason is left unsaid."""
    verdict = Verdict(goes=True, reason=reason, position=1, unused=1)
    assert not summary(VIEW, verdict).endswith(": .")


def test_who_has_no_place_is_told_none() -> None:
    """A base that is in use has none in the order of eviction."""
    verdict = Verdict(goes=True, reason=Reason.MAX_IDLE, unused=0)
    assert (
        summary(VIEW, verdict) == "It goes in the next pass: it was unused for eviction.max_idle."
    )


@pytest.mark.parametrize("rule", Rule)
def test_every_rule_has_its_words(rule: Rule) -> None:
    """Nor any rule."""
    verdict = Verdict(goes=False, reason=Reason.ROOM, rules=(rule,), position=1, unused=1)
    assert len(summary(VIEW, verdict).partition("eviction: ")[2] or "") > len(".")


def test_who_has_no_base_is_told_so() -> None:
    """An image that is coming, or has failed, has nothing that could go."""
    coming = replace(VIEW, base=None, state=ImageState.DOWNLOADING)
    assert summary(coming, None) == "There is no base to evict: the image is downloading."
    failed = replace(coming, state=ImageState.FAILED, error="Glance is away")
    assert summary(failed, None) == (
        "There is no base to evict: the image is failed: Glance is away."
    )


def test_what_happens_at_this_moment_is_told() -> None:
    """A base that is going is in no plan, nor is one that came since it was made."""
    going = replace(VIEW, base=base(1, state=BaseState.EVICTING))
    assert summary(going, None) == "It goes just now."
    assert summary(VIEW, None) == "It has changed just now; ask again."
