"""Statements about who holds a base: disks, pins, leases. Called in the catalog's thread."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import queries, rows
from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CachedImage,
    DiskKey,
    DiskName,
    InstanceId,
    User,
    UserKind,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from cacheagent.model import ImageId, Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An image with its base, and who holds that: disks, pins, leases."""

    cached: CachedImage
    base: Base | None = None
    users: tuple[User, ...] = ()
    pinned: bool = False


_HOLDS = """
    SELECT base_id, 'disk' AS kind, instance_id, name, NULL AS detail FROM base_users
    UNION ALL
    SELECT base_id, 'pin', NULL, NULL, image_id FROM images JOIN pins USING (image_id)
        WHERE base_id IS NOT NULL
    UNION ALL
    SELECT base_id, 'lease', NULL, NULL, holder FROM leases WHERE expires_at > :now
"""


def users(db: sqlite3.Connection, now: datetime) -> Mapping[BaseId, tuple[User, ...]]:
    """Give who holds which base; one that nobody holds is left out."""
    found: dict[BaseId, list[User]] = defaultdict(list)
    for row in db.execute(_HOLDS, {"now": rows.stamp(now)}):
        found[BaseId(row["base_id"])].append(_user(row))
    return {base_id: tuple(each) for base_id, each in found.items()}


def users_of(db: sqlite3.Connection, base_id: BaseId, now: datetime) -> tuple[User, ...]:
    """Give who holds the base."""
    query = f"SELECT * FROM ({_HOLDS}) WHERE base_id = :base"  # noqa: S608 -- both are ours
    found = db.execute(query, {"now": rows.stamp(now), "base": base_id})
    return tuple(_user(row) for row in found)


def held(db: sqlite3.Connection, image_ids: Sequence[ImageId], now: datetime) -> list[Held]:
    """Give the images that are known, with their bases and who holds them."""
    return [_held(db, cached, now) for cached in queries.images_named(db, image_ids)]


def _held(db: sqlite3.Connection, cached: CachedImage, now: datetime) -> Held:
    base = None if cached.base_id is None else queries.base(db, cached.base_id)
    pin = db.execute("SELECT 1 FROM pins WHERE image_id = ?", (cached.image.image_id,))
    return Held(
        cached=cached,
        base=base,
        users=() if base is None else users_of(db, base.base_id, now),
        pinned=pin.fetchone() is not None,
    )


def _user(row: sqlite3.Row) -> User:
    key = None
    if row["instance_id"] is not None:
        name = DiskName(intern(row["name"]))
        key = DiskKey(instance_id=InstanceId(row["instance_id"]), name=name)
    return User(kind=UserKind(row["kind"]), key=key, detail=row["detail"])


def begin_eviction(db: sqlite3.Connection, base_id: BaseId, now: datetime) -> tuple[User, ...]:
    """Set the base to EVICTING unless something holds it; give what does."""
    holders = users_of(db, base_id, now)
    if not holders:
        queries.set_base_state(db, base_id, BaseState.EVICTING)
    return holders


def end_eviction(db: sqlite3.Connection, base_id: BaseId, now: datetime) -> tuple[User, ...]:
    """Drop the base unless something holds it by now; give what does."""
    holders = users_of(db, base_id, now)
    if not holders:
        queries.remove_base(db, base_id)
    return holders


def lease_image(
    db: sqlite3.Connection, image_id: ImageId, lease_id: str, holder: str, expires_at: datetime
) -> tuple[CachedImage, Base] | None:
    """Give the image and its base, leased; None where it has none that is READY."""
    cached = queries.image(db, image_id)
    if cached is None or cached.base_id is None:
        return None
    base = queries.base(db, cached.base_id)
    if base is None or base.state is not BaseState.READY:
        return None
    _insert(db, (lease_id, base.base_id, holder, rows.stamp(expires_at)))
    return cached, base


def lease(db: sqlite3.Connection, value: Lease) -> bool:
    """Record the lease; False where its base is not READY."""
    ready = queries.is_ready(db, value.base_id)
    if ready:
        _insert(db, tuple(rows.lease_row(value).values()))
    return ready


def _insert(db: sqlite3.Connection, columns: tuple[object, ...]) -> None:
    db.execute(
        "INSERT INTO leases VALUES (?, ?, ?, ?)"
        " ON CONFLICT (lease_id) DO UPDATE SET base_id = excluded.base_id,"
        " holder = excluded.holder, expires_at = excluded.expires_at",
        columns,
    )


def leases(db: sqlite3.Connection, now: datetime) -> list[Lease]:
    """Give the leases that have not expired."""
    found = db.execute(
        "SELECT * FROM leases WHERE expires_at > ? ORDER BY expires_at", (rows.stamp(now),)
    )
    return [rows.to_lease(row) for row in found]


def release(db: sqlite3.Connection, lease_id: str) -> None:
    """Drop the lease, if it is there."""
    db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))


def drop_leases(db: sqlite3.Connection, now: datetime | None) -> None:
    """Drop the leases that have expired by ``now``; all of them without."""
    if now is None:
        db.execute("DELETE FROM leases")
    else:
        db.execute("DELETE FROM leases WHERE expires_at <= ?", (rows.stamp(now),))
