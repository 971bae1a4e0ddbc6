"""What a pass of eviction came to, told to log, metrics, events, and whoever asks later."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import InsufficientSpaceError
from cacheagent.model import User, UserKind
from cacheagent.policy.eviction import DemandKind, Eviction, EvictionPlan, Reason
from cacheagent.policy.quarantine import Refused
from cacheagent.service.events import EventKind
from cacheagent.service.removal import Skipped
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.policy.eviction import Demand, EvictionPolicy
    from cacheagent.service.parts import Parts

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a pass came to: its last plan, what went, what stayed after all, bytes as measured.

    ``dropped`` are the refused images that went from quarantine.
    """

    plan: EvictionPlan
    evicted: tuple[Eviction, ...]
    skipped: tuple[Skipped, ...]
    freed_bytes: int
    dropped: tuple[Refused, ...] = ()


class Outcome:
    """Tells of passes, and knows of the last one what an operator has to do something about.

    ``doubts`` keep all bases from eviction. ``unmet_bytes`` is what the bounds ask for and could
    not be freed.
    """

    def __init__(self, parts: Parts) -> None:
        self._metrics = parts.metrics
        self._events = parts.events
        self._now = parts.now
        self._said: object = None
        self.doubts: tuple[User, ...] = ()
        self.unmet_bytes = 0

    def tell(self, trigger: str, demand: Demand | None, done: Pass) -> None:
        """Say what the pass came to."""
        plan, metrics = done.plan, self._metrics
        metrics.prune_freed_bytes_total.inc(done.freed_bytes)
        for reason in _kept_by(done):
            metrics.eviction_skipped_total.labels(reason=reason).inc()
        self._tell_doubts(_doubts(plan))
        if demand is None or demand.kind is not DemandKind.ROOM:
            # What one request wanted in vain is no bound that is broken.
            self.unmet_bytes = plan.unmet_bytes
            metrics.prune_unmet_bytes.set(plan.unmet_bytes)
        if not plan.unmet_bytes:
            metrics.prune_last_success_timestamp_seconds.set(self._now().timestamp())
        self._tell_pass(trigger, done)

    def _tell_pass(self, trigger: str, done: Pass) -> None:
        plan = done.plan
        facts = {
            "evicted": len(done.evicted),
            "dropped": len(done.dropped),
            "freed_bytes": done.freed_bytes,
            "needed_bytes": plan.needed_bytes,
            "unmet_bytes": plan.unmet_bytes,
            "unmet_inodes": plan.unmet_inodes,
            "kept": dict(Counter(_kept_by(done))),
        }
        unmet = plan.unmet_bytes or plan.unmet_inodes
        # A pass each half minute says the same for as long as nobody does anything about it.
        if done.evicted or done.dropped or (unmet and facts != self._said):
            (_log.warning if unmet else _log.info)("pruned", trigger=trigger, **facts)
            self._events.emit(EventKind.PRUNE, trigger=trigger, **facts)
        self._said = facts

    def _tell_doubts(self, doubts: tuple[User, ...]) -> None:
        for each in doubts:
            if each not in self.doubts:
                _log.warning(
                    "nothing can be evicted: nobody knows who uses what",
                    path=str(each.path),
                    why=each.detail,
                )
        if self.doubts and not doubts:
            _log.info("bases can be evicted again: all doubts have ended")
        self.doubts = doubts
        self._metrics.eviction_doubts.set(len(doubts))


def refusal(demand: Demand, done: Pass, bounds: EvictionPolicy) -> InsufficientSpaceError:
    """Give the refusal of bytes that cannot be had: which bound is short, and what keeps bases.

    All who wait for the bytes are told, tenants too: whose files the doubts are about is not.
    """
    plan = done.plan
    where = ""
    if plan.unmet_reason is Reason.MAX_SIZE and bounds.max_size is not None:
        where = f" within eviction.max_size ({format_size(bounds.max_size)})"
    elif bounds.min_free:
        where = f" beside eviction.min_free ({format_size(bounds.min_free)})"
    kept = ", ".join(f"{kind} ({number})" for kind, number in Counter(_kept_by(done)).items())
    doubts = "; the status of the agent has the doubts" if _doubts(plan) else ""
    return InsufficientSpaceError(
        required_bytes=demand.size,
        available_bytes=max(demand.size - plan.unmet_bytes, 0),
        why=where + (f"; bases are kept by: {kept}" if kept else "") + doubts,
    )


def _doubts(plan: EvictionPlan) -> tuple[User, ...]:
    """Give each doubt once, as they are about all bases alike."""
    users = (user for stay in plan.stay for user in stay.users)
    return tuple(dict.fromkeys(user for user in users if user.kind is UserKind.DOUBT))


def _kept_by(done: Pass) -> Iterator[str]:
    """Give what kept each base that would have gone: kinds of users, and rules."""
    for stay in done.plan.stay:
        if stay.wanted is not None:
            yield from sorted({*(user.kind.value for user in stay.users), *map(str, stay.rules)})
    for each in done.skipped:
        yield from sorted({user.kind.value for user in each.users})
