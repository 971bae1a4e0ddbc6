"""A drift plan carried out on the rows, in one transaction. Called in the catalog's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.backends.catalog import queries
from cacheagent.model import BaseState

if TYPE_CHECKING:
    import sqlite3
    from datetime import datetime

    from cacheagent.policy.drift import DriftPlan


def mend(db: sqlite3.Connection, plan: DriftPlan, now: datetime, why: str) -> None:
    """Do what the plan says of rows; disks that were not made failed for the reason ``why``."""
    for base_id in (*plan.drop_base_rows, *plan.finish_evictions):
        queries.remove_base(db, base_id)
    for key in plan.drop_disk_rows:
        queries.remove_disk(db, key, now)
    for base_id in plan.revert_evictions:
        queries.set_base_state(db, base_id, BaseState.READY)
    queries.adopt(db, bases=plan.adopt_bases, images=plan.adopt_images, disks=plan.adopt_disks)
    for disk in plan.finish_disks:
        queries.finish_disk(db, disk.key, virtual_size=disk.virtual_size, now=now)
    for key in plan.fail_disks:
        queries.fail_disk(db, key, why)
