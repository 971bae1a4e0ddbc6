"""All statements: plain functions of a connection, called in the catalog's thread."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import rows
from cacheagent.errors import DiskNotFoundError
from cacheagent.model import DiskKey, DiskName, DiskState, ImageId

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from cacheagent.model import (
        Base,
        BaseId,
        BaseState,
        CachedImage,
        Digest,
        Disk,
        GlanceImage,
        InstanceId,
        Standing,
    )


class DiskIntent(enum.Enum):
    """What came of the intent to make a disk."""

    RECORDED = enum.auto()
    BASE_GONE = enum.auto()
    EXISTS = enum.auto()


# --- images -------------------------------------------------------------------------------------

_PUT_IMAGE = """
    INSERT INTO images (image_id, base_id, description, requested_at)
    VALUES (:id, :base, :text, :now)
    ON CONFLICT (image_id) DO UPDATE SET
        base_id = coalesce(
            excluded.base_id, iif(base_id = coalesce(:digest, base_id), base_id, NULL)
        ),
        description = excluded.description, standing = 'active'
"""
_ADOPT_IMAGE = """
    INSERT INTO images (image_id, base_id, description, requested_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (image_id) DO UPDATE SET base_id = excluded.base_id WHERE base_id IS NULL
"""


def put_image(
    db: sqlite3.Connection, image: GlanceImage, base_id: BaseId | None, now: datetime
) -> None:
    """Insert the image or refresh its description, as Glance has just said that it is active.

    A base that it has is kept or replaced; one that is not what Glance's digest stands for now
    is let go.
    """
    columns = {
        "id": image.image_id,
        "base": base_id,
        "text": rows.description(image),
        "now": rows.stamp(now),
        "digest": None if image.digest is None else image.digest.base_id,
    }
    db.execute(_PUT_IMAGE, columns)


def link_image(db: sqlite3.Connection, image: GlanceImage, base_id: BaseId, now: datetime) -> bool:
    """Let the image stand for the base; False where that is not ready."""
    ready = is_ready(db, base_id)
    if ready:
        put_image(db, image, base_id, now)
    return ready


def image(db: sqlite3.Connection, image_id: ImageId) -> CachedImage | None:
    """Give one image."""
    row = db.execute("SELECT * FROM images WHERE image_id = ?", (image_id,)).fetchone()
    return None if row is None else rows.to_image(row)


def images(db: sqlite3.Connection) -> list[CachedImage]:
    """Give all images."""
    return [rows.to_image(row) for row in db.execute("SELECT * FROM images ORDER BY image_id")]


def images_named(db: sqlite3.Connection, image_ids: Iterable[ImageId]) -> list[CachedImage]:
    """Give these images, in this order, without those that are not known."""
    found = (image(db, image_id) for image_id in image_ids)
    return [each for each in found if each is not None]


def images_of(db: sqlite3.Connection, base_id: BaseId) -> list[CachedImage]:
    """Give the images that stand for the base."""
    found = db.execute("SELECT * FROM images WHERE base_id = ? ORDER BY image_id", (base_id,))
    return [rows.to_image(row) for row in found]


def forget_image(db: sqlite3.Connection, image_id: ImageId) -> None:
    """Drop the image, unless it has a base."""
    db.execute("DELETE FROM images WHERE image_id = ? AND base_id IS NULL", (image_id,))


def set_standing(db: sqlite3.Connection, image_id: ImageId, standing: Standing) -> None:
    """Note what Glance says of the image."""
    db.execute("UPDATE images SET standing = ? WHERE image_id = ?", (standing, image_id))


# --- bases --------------------------------------------------------------------------------------

_BASE_COLUMNS = """
    INSERT INTO bases VALUES (:base_id, :state, :format, :source_format, :size, :virtual_size,
        :allocated, :inspection_version, :fetched_at, :last_used_at, :file_digest, :verified_at,
        :signatures)
    ON CONFLICT (base_id) DO
"""
_PUT_BASE = (
    _BASE_COLUMNS
    + """ UPDATE SET
        state = excluded.state, format = excluded.format, source_format = excluded.source_format,
        size = excluded.size, virtual_size = excluded.virtual_size,
        allocated = excluded.allocated, inspection_version = excluded.inspection_version,
        fetched_at = excluded.fetched_at, last_used_at = excluded.last_used_at,
        file_digest = excluded.file_digest, verified_at = excluded.verified_at,
        signatures = excluded.signatures
"""
)
_ADOPT_BASE = _BASE_COLUMNS + " NOTHING"
_TOUCH_BASE = "UPDATE bases SET last_used_at = max(last_used_at, ?) WHERE base_id = ?"


def publish(
    db: sqlite3.Connection, base: Base, known: Sequence[GlanceImage], now: datetime
) -> None:
    """Record the base, and that the images stand for it."""
    db.execute(_PUT_BASE, rows.base_row(base))
    for each in known:
        put_image(db, each, base.base_id, now)


def base(db: sqlite3.Connection, base_id: BaseId) -> Base | None:
    """Give one base."""
    row = db.execute("SELECT * FROM bases WHERE base_id = ?", (base_id,)).fetchone()
    return None if row is None else rows.to_base(row)


def bases(db: sqlite3.Connection) -> list[Base]:
    """Give all bases."""
    return [rows.to_base(row) for row in db.execute("SELECT * FROM bases ORDER BY base_id")]


def bases_named(db: sqlite3.Connection, base_ids: Iterable[BaseId]) -> list[Base]:
    """Give these bases, in this order, without those that are not known."""
    found = (base(db, base_id) for base_id in base_ids)
    return [each for each in found if each is not None]


def set_base_state(db: sqlite3.Connection, base_id: BaseId, state: BaseState) -> None:
    """Set the state of the base."""
    db.execute("UPDATE bases SET state = ? WHERE base_id = ?", (state, base_id))


def set_verified(db: sqlite3.Connection, base_id: BaseId, digest: Digest, now: datetime) -> None:
    """Note that the base was read, and what its digest is."""
    columns = (rows.digest(digest), rows.stamp(now), base_id)
    db.execute("UPDATE bases SET file_digest = ?, verified_at = ? WHERE base_id = ?", columns)


def set_proved(db: sqlite3.Connection, base: Base) -> None:
    """Note what was proved of the base."""
    columns = (base.inspection_version, rows.signatures(base.signatures), base.base_id)
    db.execute("UPDATE bases SET inspection_version = ?, signatures = ? WHERE base_id = ?", columns)


def touch(db: sqlite3.Connection, base_ids: Sequence[BaseId], now: datetime) -> None:
    """Note that the bases are in use now; a time to come, after the clock was set back, is now."""
    stamp = rows.stamp(now)
    db.executemany(_TOUCH_BASE, [(stamp, base_id) for base_id in base_ids])
    for column in ("fetched_at", "last_used_at"):
        # The columns are named here and nowhere else.
        db.execute(f"UPDATE bases SET {column} = :now WHERE {column} > :now", {"now": stamp})  # noqa: S608


def remove_base(db: sqlite3.Connection, base_id: BaseId) -> None:
    """Drop the base; its images go with it by the foreign key."""
    db.execute("DELETE FROM bases WHERE base_id = ?", (base_id,))


def is_ready(db: sqlite3.Connection, base_id: BaseId) -> bool:
    """Tell whether disks can be made from the base."""
    found = db.execute("SELECT 1 FROM bases WHERE base_id = ? AND state = 'ready'", (base_id,))
    return found.fetchone() is not None


# --- disks --------------------------------------------------------------------------------------

_DISK_COLUMNS = """
    INSERT INTO disks VALUES (:instance_id, :name, :spec, :state, :format, :mode, :virtual_size,
        :image_id, :base_id, :cache, :created_at, :error)
    ON CONFLICT (instance_id, name) DO
"""
_INTEND_DISK = (
    _DISK_COLUMNS
    + """ UPDATE SET
        spec = excluded.spec, state = excluded.state, format = excluded.format,
        mode = excluded.mode, virtual_size = excluded.virtual_size,
        image_id = excluded.image_id, base_id = excluded.base_id, cache = excluded.cache,
        created_at = excluded.created_at, error = excluded.error
    WHERE state <> 'ready'
"""
)
_ADOPT_DISK = _DISK_COLUMNS + " NOTHING"
_STATES_OF_INSTANCE = "SELECT name, state FROM disks WHERE instance_id = ? ORDER BY name"
_NEXT_DISKS = """
    SELECT * FROM disks WHERE instance_id > :after AND instance_id <= (
        SELECT max(instance_id) FROM (
            SELECT DISTINCT instance_id FROM disks WHERE instance_id > :after
            ORDER BY instance_id LIMIT :number
        )
    )
    ORDER BY instance_id, name
"""


def begin_disk(db: sqlite3.Connection, disk: Disk, lease_id: str | None) -> DiskIntent:
    """Record a disk that is about to be made, in place of one that was not, and of the lease."""
    if disk.base_id is not None and not is_ready(db, disk.base_id):
        return DiskIntent.BASE_GONE
    written = insert_intent(db, disk)
    if lease_id is not None:
        db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))
    return DiskIntent.RECORDED if written else DiskIntent.EXISTS


def insert_intent(db: sqlite3.Connection, disk: Disk) -> bool:
    """Record the disk as PENDING; False where one that is READY has its name."""
    intent = {**rows.disk_row(disk), "state": DiskState.PENDING, "error": None}
    return db.execute(_INTEND_DISK, intent).rowcount > 0


def finish_disk(db: sqlite3.Connection, key: DiskKey, *, virtual_size: int, now: datetime) -> Disk:
    """Set the disk to READY, and note the use of its base."""
    row = db.execute(
        "UPDATE disks SET state = 'ready', virtual_size = ?, error = NULL"
        " WHERE instance_id = ? AND name = ? RETURNING *",
        (virtual_size, key.instance_id, key.name),
    ).fetchone()
    if row is None:
        raise DiskNotFoundError(f"instance {key.instance_id} has no disk {key.name}")
    db.execute(_TOUCH_BASE, (rows.stamp(now), row["base_id"]))
    return rows.to_disk(row)


def fail_disk(db: sqlite3.Connection, key: DiskKey, error: str) -> None:
    """Set the disk to FAILED, with the reason."""
    db.execute(
        "UPDATE disks SET state = 'failed', error = ? WHERE instance_id = ? AND name = ?",
        (error, key.instance_id, key.name),
    )


def disk(db: sqlite3.Connection, key: DiskKey) -> Disk | None:
    """Give one disk."""
    row = db.execute(
        "SELECT * FROM disks WHERE instance_id = ? AND name = ?", (key.instance_id, key.name)
    ).fetchone()
    return None if row is None else rows.to_disk(row)


def disks(db: sqlite3.Connection) -> list[Disk]:
    """Give all disks."""
    found = db.execute("SELECT * FROM disks ORDER BY instance_id, name")
    return [rows.to_disk(row) for row in found]


def next_disks(db: sqlite3.Connection, after: InstanceId | None, number: int) -> list[Disk]:
    """Give the disks of the next instances behind one."""
    found = db.execute(_NEXT_DISKS, {"after": after or "", "number": number})
    return [rows.to_disk(row) for row in found]


def images_of_disks(db: sqlite3.Connection) -> frozenset[ImageId]:
    """Give the images that disks are made of."""
    found = db.execute("SELECT DISTINCT image_id FROM disks WHERE image_id IS NOT NULL")
    return frozenset(ImageId(row["image_id"]) for row in found)


def disks_of_instance(db: sqlite3.Connection, instance_id: InstanceId) -> list[Disk]:
    """Give the disks of one instance."""
    found = db.execute("SELECT * FROM disks WHERE instance_id = ? ORDER BY name", (instance_id,))
    return [rows.to_disk(row) for row in found]


def disk_states(
    db: sqlite3.Connection, instance_ids: Iterable[InstanceId]
) -> dict[DiskKey, DiskState]:
    """Give the disks of these instances, and their states."""
    return {
        DiskKey(instance_id=instance_id, name=DiskName(name)): DiskState(state)
        for instance_id in instance_ids
        for name, state in db.execute(_STATES_OF_INSTANCE, (instance_id,))
    }


def disks_of_base(db: sqlite3.Connection, base_id: BaseId) -> list[Disk]:
    """Give the disks that need the base: its overlays, and whatever is being made from it."""
    found = db.execute(
        "SELECT * FROM base_users WHERE base_id = ? ORDER BY instance_id, name", (base_id,)
    )
    return [rows.to_disk(row) for row in found]


def remove_disk(db: sqlite3.Connection, key: DiskKey, now: datetime) -> None:
    """Drop the disk, and note that its base was in use until now if it was."""
    columns = (key.instance_id, key.name)
    db.execute(
        "UPDATE bases SET last_used_at = max(last_used_at, ?) WHERE base_id ="
        " (SELECT base_id FROM base_users WHERE instance_id = ? AND name = ?)",
        (rows.stamp(now), *columns),
    )
    db.execute("DELETE FROM disks WHERE instance_id = ? AND name = ?", columns)


# --- pins, and all together ---------------------------------------------------------------------


def pin(db: sqlite3.Connection, image_id: ImageId, now: datetime) -> None:
    """Pin the image; a pin that is there stays as it is."""
    columns = (image_id, rows.stamp(now))
    db.execute("INSERT INTO pins VALUES (?, ?) ON CONFLICT (image_id) DO NOTHING", columns)


def unpin(db: sqlite3.Connection, image_id: ImageId) -> None:
    """Take the pin away, if there is one."""
    db.execute("DELETE FROM pins WHERE image_id = ?", (image_id,))


def pins(db: sqlite3.Connection) -> frozenset[ImageId]:
    """Give the images that are pinned."""
    return frozenset(ImageId(row["image_id"]) for row in db.execute("SELECT image_id FROM pins"))


def note(db: sqlite3.Connection, name: str) -> str | None:
    """Give what is noted under the name."""
    row = db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row["value"])


def put_note(db: sqlite3.Connection, name: str, value: str) -> None:
    """Note the value under the name."""
    db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))


def adopt(
    db: sqlite3.Connection,
    *,
    bases: Sequence[Base],
    images: Sequence[CachedImage],
    disks: Sequence[Disk],
) -> None:
    """Record what was found; a row that is there stays, but for an image without a base."""
    db.executemany(_ADOPT_BASE, [rows.base_row(each) for each in bases])
    for each in images:
        stamp = rows.stamp(each.requested_at)
        columns = (each.image.image_id, each.base_id, rows.description(each.image), stamp)
        db.execute(_ADOPT_IMAGE, columns)
    db.executemany(_ADOPT_DISK, [rows.disk_row(each) for each in disks])
