"""The reconciler: files and catalog agree before anybody is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from datetime import datetime

    from cacheagent.policy.drift import DriftPlan
    from cacheagent.service.reconcile import Reconcile


class Reconciler:
    """Runs the reconciliation; ``last_runs`` is told when."""

    def __init__(
        self,
        reconcile: Reconcile,
        now: Callable[[], datetime],
        last_runs: MutableMapping[str, datetime | None],
    ) -> None:
        self._reconcile = reconcile
        self._now = now
        self._last_runs = last_runs
        last_runs["reconciler"] = None

    async def start(self) -> None:
        """Run once, before the first request."""
        await self.run_once(self._now())

    async def run_once(self, now: datetime) -> DriftPlan:
        """Compare files and catalog, mend the difference, and give what was done."""
        plan = await self._reconcile.run(now)
        self._last_runs["reconciler"] = now
        return plan
