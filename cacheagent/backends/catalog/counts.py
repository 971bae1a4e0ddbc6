"""What the catalog holds, counted where it lies. Called in the catalog's thread."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import rows
from cacheagent.model import BaseState, Counts, DiskMode, ImageId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

_BASES = """
    SELECT count(*) AS bases,
        coalesce(sum(state = 'quarantined'), 0) AS quarantined,
        coalesce(sum(allocated), 0) AS allocated,
        coalesce(sum(virtual_size), 0) AS virtual,
        -- A raw base is as long as its disk, another is as it was downloaded.
        coalesce(sum(iif(format = 'raw', virtual_size, size)), 0) AS apparent
    FROM bases
"""
_DISKS = """
    SELECT count(*) AS disks, count(DISTINCT instance_id) AS instances,
        coalesce(sum(state = 'ready' AND mode = 'overlay'), 0) AS overlay,
        coalesce(sum(state = 'ready' AND mode = 'full'), 0) AS full
    FROM disks
"""
_LEASES = "SELECT count(*) AS leases FROM leases WHERE expires_at > :now"
_PINNED = "SELECT count(DISTINCT base_id) AS pinned FROM images JOIN pins USING (image_id)"
_UNUSED = """
    SELECT count(*) AS unused, min(max(last_used_at, fetched_at)) AS oldest FROM bases AS base
    WHERE NOT EXISTS (SELECT 1 FROM base_users WHERE base_id = base.base_id)
    AND NOT EXISTS (SELECT 1 FROM images JOIN pins USING (image_id) WHERE base_id = base.base_id)
    AND NOT EXISTS (SELECT 1 FROM leases WHERE base_id = base.base_id AND expires_at > :now)
"""


def counts(db: sqlite3.Connection, now: datetime) -> Counts:
    """Count everything, with leases and use as they are at ``now``."""
    at = {"now": rows.stamp(now)}

    def one(query: str) -> sqlite3.Row:
        row: sqlite3.Row = db.execute(query, at if ":now" in query else {}).fetchone()
        return row

    bases, disks, unused = one(_BASES), one(_DISKS), one(_UNUSED)
    oldest = unused["oldest"]
    return Counts(
        bases=bases["bases"],
        quarantined=bases["quarantined"],
        in_use=bases["bases"] - unused["unused"],
        pinned=one(_PINNED)["pinned"],
        leases=one(_LEASES)["leases"],
        disks=disks["disks"],
        instances=disks["instances"],
        ready_disks={mode: disks[mode] for mode in DiskMode},
        allocated=bases["allocated"],
        virtual=bases["virtual"],
        apparent=bases["apparent"],
        oldest_unused=None if oldest is None else datetime.fromisoformat(oldest),
    )


def image_states(db: sqlite3.Connection) -> Mapping[ImageId, BaseState]:
    """Give each image with the state of its base; INGESTING for one that has none yet."""
    found = db.execute("SELECT image_id, state FROM images LEFT JOIN bases USING (base_id)")
    return {
        ImageId(image_id): BaseState.INGESTING if state is None else BaseState(state)
        for image_id, state in found
    }
