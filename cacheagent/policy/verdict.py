"""What a plan says of one base: why it stays, or when it goes, in values and in a sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cacheagent.model import BaseId, BaseState, ImageView, User
from cacheagent.policy.eviction import EvictionPlan, EvictionPolicy, Reason, Rule, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

_REASONS = {
    Reason.MAX_SIZE: "the cache is larger than eviction.max_size",
    Reason.HIGH_WATERMARK: "the file system is fuller than eviction.high_watermark",
    Reason.MIN_FREE: "less than eviction.min_free is free",
    Reason.ROOM: "room is needed for what is being written",
    Reason.MAX_IDLE: "it was unused for eviction.max_idle",
    Reason.IMAGE_GONE: "Glance has deleted or deactivated its image",
    Reason.DAMAGED: "its file is no longer what it was",
    Reason.OPERATOR: "an operator asked for room",
}

_RULES = {
    Rule.MIN_KEEP: "without it less than eviction.min_keep would be left",
    Rule.NEVER_FITS: "what needs the room would not fit in any case",
    Rule.NOT_NEEDED: "no room is needed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a base in the next pass.

    ``reason`` says why it goes or, where it stays, why it would have gone. ``position`` counts
    from 1 in the order in which the ``unused`` bases go, None for one in use. ``free_at`` is when
    ``min_age`` ends to hold it, ``idle_at`` when it goes for being idle if nobody uses it before.
    """

    goes: bool
    reason: Reason | None
    users: tuple[User, ...] = ()
    rules: tuple[Rule, ...] = ()
    position: int | None = None
    unused: int
    free_at: datetime | None = None
    idle_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why an image stays, or when it goes; ``verdict`` is None where it has no base to decide on.

    ``snapshot`` (without bases) and ``policy`` are the bounds and what is measured against them,
    ``needed_bytes`` the largest shortage. ``summary`` says the same in sentences.
    """

    view: ImageView
    verdict: Verdict | None
    snapshot: Snapshot
    policy: EvictionPolicy
    needed_bytes: int
    summary: str


def find_verdict(plan: EvictionPlan, base_id: BaseId) -> Verdict | None:
    """Give what the plan says of the base; None where it says nothing of it."""
    taken = {stay.position for stay in plan.stay}
    unused = len(plan.evict) + len(taken - {None})
    for stay in plan.stay:
        if stay.base.base_id == base_id:
            return Verdict(
                goes=False,
                reason=stay.wanted,
                users=stay.users,
                rules=stay.rules,
                position=stay.position,
                unused=unused,
                free_at=stay.free_at,
                idle_at=stay.idle_at,
            )
    # What goes has the places that are left over, in the order of the plan.
    free = (place for place in range(1, unused + 1) if place not in taken)
    for eviction, place in zip(plan.evict, free, strict=True):
        if eviction.base.base_id == base_id:
            return Verdict(goes=True, reason=eviction.reason, position=place, unused=unused)
    return None


def summary(view: ImageView, verdict: Verdict | None) -> str:
    """Say in sentences why the image stays, or when it goes, and whether anybody gets it."""
    told = _summary(view, verdict)
    return f"{told} Nobody gets it now: {view.withheld}." if view.withheld else told


def _summary(view: ImageView, verdict: Verdict | None) -> str:
    if view.base is None:
        why = f": {view.error}" if view.error else ""
        return f"There is no base to evict: the image is {view.state}{why}."
    if verdict is None:
        going = view.base.state is BaseState.EVICTING
        return "It goes just now." if going else "It has changed just now; ask again."
    if verdict.goes:
        return f"It goes in the next pass{_place(verdict)}: {_reason(verdict)}."
    return " ".join(_staying(verdict))


def _staying(verdict: Verdict) -> Iterator[str]:
    if verdict.users:
        yield f"It stays, because it is in use: {_users(verdict.users)}."
        if verdict.reason is not None:
            yield f"Otherwise it would have to go: {_reason(verdict)}."
        return
    if verdict.reason is None:
        yield f"Nothing uses it, and it stays, because no room is needed{_place(verdict)}."
        if verdict.idle_at is not None:
            yield f"If nobody uses it, it goes at {_time(verdict.idle_at)} for eviction.max_idle."
        return
    yield f"It would have to go, because {_reason(verdict)}, and stays{_place(verdict)}:"
    yield ", and ".join(_rule(rule, verdict) for rule in verdict.rules) + "."


def _rule(rule: Rule, verdict: Verdict) -> str:
    if rule is Rule.MIN_AGE:
        until = f" until {_time(verdict.free_at)}" if verdict.free_at else ""
        return f"eviction.min_age holds it{until}"
    return _RULES[rule]


def _reason(verdict: Verdict) -> str:
    return "" if verdict.reason is None else _REASONS[verdict.reason]


def _place(verdict: Verdict) -> str:
    if verdict.position is None:
        return ""
    return f", as number {verdict.position} of {verdict.unused} in the order of eviction"


def _users(users: tuple[User, ...]) -> str:
    counted = Counter(user.kind.value for user in users)
    return ", ".join(
        f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(counted.items())
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
