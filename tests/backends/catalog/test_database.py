"""The catalog's file: kept, migrated, set aside."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.catalog import Catalog, rows
from cacheagent.backends.catalog.database import Database, translated
from cacheagent.backends.catalog.schema import MIGRATIONS
from cacheagent.errors import CatalogError, InsufficientSpaceError
from cacheagent.model import CachedImage, Digest, Lease, Standing
from tests.fakes.values import NOW, base, base_id, disk, disk_key, glance_image, image_id

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.allow_blocking  # the tests look at small files themselves

TABLE = "CREATE TABLE things (thing TEXT) STRICT"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give the place of the file."""
    return tmp_path / "catalog.db"


async def _filled(path: Path) -> None:
    catalog = await Catalog.open(path)
    await catalog.intend_image(glance_image(1), NOW)
    await catalog.close()


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _spoil(path: Path, where: int) -> bytes:
    """Overwrite a part of the file; give what it is then."""
    content = bytearray(path.read_bytes())
    content[where : where + 1000] = b"\xa5" * 1000
    path.write_bytes(content)
    return bytes(content)


def _insert(db: sqlite3.Connection, thing: str) -> None:
    db.execute("INSERT INTO things VALUES (?)", (thing,))


def _things(db: sqlite3.Connection) -> list[str]:
    return [row["thing"] for row in db.execute("SELECT thing FROM things")]


async def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    """A catalog is begun once and found again later."""
    first = await Catalog.open(path)
    assert first.rebuilt
    await first.close()
    await _filled(path)
    again = await Catalog.open(path)
    assert not again.rebuilt
    assert again.set_aside is None
    assert await again.image(image_id(1)) is not None
    await again.close()


@pytest.mark.parametrize("where", [0, 4096, 2 * 4096 + 3000])
async def test_a_broken_catalog_is_set_aside(path: Path, where: int) -> None:
    """Garbage instead of a database begins a new one, and the old file is kept for people."""
    await _filled(path)
    garbage = _spoil(path, where)
    catalog = await Catalog.open(path)
    assert catalog.rebuilt
    assert catalog.set_aside == path.with_name("catalog.db.broken-1")
    assert catalog.set_aside.read_bytes() == garbage
    assert await catalog.images() == []
    await catalog.close()


async def test_every_broken_catalog_is_kept(path: Path) -> None:
    """A second broken file does not take the place of the first, and its log goes with it."""
    for number in (1, 2):
        _write(path, b"garbage %d" % number * 100)
        _write(path.with_name("catalog.db-wal"), b"log")
        catalog = await Catalog.open(path)
        await catalog.close()
        kept = path.with_name(f"catalog.db.broken-{number}")
        assert kept.read_bytes() == b"garbage %d" % number * 100


async def test_a_catalog_that_was_deleted_is_begun_anew(path: Path) -> None:
    """Deleting the database is safe, also where its log was left behind."""
    catalog = await Catalog.open(path)
    await catalog.intend_image(glance_image(1), NOW)
    log = _read(path.with_name("catalog.db-wal"))
    await catalog.close()
    await asyncio.to_thread(path.unlink)
    _write(path.with_name("catalog.db-wal"), log)
    again = await Catalog.open(path)
    assert again.rebuilt
    assert await again.images() == []
    await again.close()


async def test_a_catalog_of_the_first_version_keeps_its_rows(path: Path) -> None:
    """An update adds what the new version remembers, and loses nothing that the old one knew."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1;")
        times = (rows.stamp(NOW), rows.stamp(NOW))
        db.execute(
            "INSERT INTO bases VALUES (?, 'ready', 'raw', 'qcow2', 1000, 1 << 30, 4096, 1, ?, ?)",
            (base_id(1), *times),
        )
        described = rows.description(glance_image(1))
        db.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?)",
            (image_id(1), base_id(1), described, rows.stamp(NOW)),
        )
        columns = rows.disk_row(disk(disk_key(1), 1))
        marks = ", ".join("?" * len(columns))
        db.execute(f"INSERT INTO disks VALUES ({marks})", tuple(columns.values()))  # noqa: S608 -- only marks
        db.execute("INSERT INTO pins VALUES (?, ?)", (image_id(1), rows.stamp(NOW)))
    catalog = await Catalog.open(path)
    assert not catalog.rebuilt
    assert await catalog.bases() == [base(1)]
    assert await catalog.images() == [
        CachedImage(image=glance_image(1), base_id=base_id(1), requested_at=NOW)
    ]
    assert await catalog.disks() == [disk(disk_key(1), 1)]
    assert await catalog.pins() == {image_id(1)}
    assert await catalog.lease(
        Lease(lease_id="a", base_id=base_id(1), holder="somebody", expires_at=NOW)
    )
    await catalog.close()


async def test_a_catalog_of_the_second_version_keeps_its_rows(path: Path) -> None:
    """A base that came before signatures were remembered is one without a checked signature."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(f"{MIGRATIONS[0]}; {MIGRATIONS[1]}; PRAGMA user_version = 2;")
        digest = Digest("sha256", "ab" * 32)
        known = rows.base_row(replace(base(1), file_digest=digest, verified_at=NOW))
        columns = [value for name, value in known.items() if name != "signatures"]
        marks = ", ".join("?" * len(columns))
        db.execute(f"INSERT INTO bases VALUES ({marks})", columns)  # noqa: S608 -- only marks
        db.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, 'deactivated')",
            (image_id(1), base_id(1), rows.description(glance_image(1)), rows.stamp(NOW)),
        )
    catalog = await Catalog.open(path)
    assert not catalog.rebuilt
    assert await catalog.bases() == [replace(base(1), file_digest=digest, verified_at=NOW)]
    (cached,) = await catalog.images()
    assert (cached.image, cached.standing) == (glance_image(1), Standing.DEACTIVATED)
    await catalog.close()


async def test_a_newer_catalog_is_left_alone(path: Path) -> None:
    """A file of a newer version stops the start with a sentence, and is not touched."""
    await _filled(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = _read(path)
    with pytest.raises(CatalogError, match=r"newer cacheagent: its schema is 99"):
        await Catalog.open(path)
    assert _read(path) == before


async def test_a_path_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    """A folder that is missing is told by its path."""
    with pytest.raises(CatalogError, match="unable to open database file"):
        await Catalog.open(tmp_path / "missing" / "catalog.db")


async def test_migrations_run_once_and_in_order(path: Path) -> None:
    """An older file is brought up to date by the scripts that it has not seen."""
    first = await Database.open(path, [TABLE])
    await first.write(_insert, "old")
    await first.close()
    both = [TABLE, "ALTER TABLE things ADD COLUMN size INTEGER; DELETE FROM things"]
    second = await Database.open(path, both)
    assert not second.begun_anew
    assert await second.read(_things) == []
    await second.close()


async def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    """A script is done whole or not at all."""
    first = await Database.open(path, [TABLE])
    await first.write(_insert, "kept")
    await first.close()
    with pytest.raises(CatalogError, match="no such table: nowhere"):
        await Database.open(path, [TABLE, "DELETE FROM things; DELETE FROM nowhere"])
    again = await Database.open(path, [TABLE])
    assert await again.read(_things) == ["kept"]
    await again.close()


async def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    """An error of any kind undoes what the transaction had done, and the next one works."""

    def insert_and_fail(db: sqlite3.Connection) -> None:
        _insert(db, "undone")
        raise LookupError

    database = await Database.open(path, [TABLE])
    with pytest.raises(LookupError):
        await database.write(insert_and_fail)
    await database.write(_insert, "done")
    assert await database.read(_things) == ["done"]
    await database.close()


async def test_a_full_disk_is_told_as_such(path: Path) -> None:
    """Where there is no room the error says so, the transaction is undone, and reading goes on."""

    def fill(db: sqlite3.Connection) -> None:
        for _ in range(100):
            _insert(db, "x" * 4096)

    def limit(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA max_page_count = 10")

    database = await Database.open(path, [TABLE])
    await database.read(limit)
    with pytest.raises(InsufficientSpaceError) as caught:
        await database.write(fill)
    assert caught.value.available_bytes > 0
    assert await database.read(_things) == []
    await database.close()


def test_other_errors_of_sqlite_are_catalog_errors(path: Path) -> None:
    """Whatever else fails in SQLite names the file, and what was the matter."""
    with pytest.raises(CatalogError, match=r"catalog\.db: odd"), translated(path):
        raise sqlite3.InterfaceError("odd")


async def test_a_cancelled_caller_leaves_when_its_work_has_ended(path: Path) -> None:
    """Nothing is written behind the back of a caller that was cancelled."""
    started, go = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        started.set()
        go.wait()
        _insert(db, "late")

    database = await Database.open(path, [TABLE])
    caller = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(started.wait)
    caller.cancel()
    done, _ = await asyncio.wait({caller}, timeout=0)
    assert not done
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await database.read(_things) == ["late"]
    await database.close()


async def test_what_waits_becomes_one_transaction(path: Path) -> None:
    """Writes that wait for one another are committed together; reads see those before them."""
    started, go, commits = threading.Event(), threading.Event(), []

    def hold(db: sqlite3.Connection) -> None:
        db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        started.set()
        go.wait()

    database = await Database.open(path, [TABLE])
    holding = asyncio.create_task(database.read(hold))
    await asyncio.to_thread(started.wait)
    writes = [asyncio.create_task(database.write(_insert, f"{number}")) for number in range(3)]
    await asyncio.sleep(0)
    reading = asyncio.create_task(database.read(_things))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(holding, *writes)
    assert await reading == ["0", "1", "2"]
    assert commits == ["COMMIT"]
    await database.close()


async def test_error_of_one_undoes_nothing_of_the_others(path: Path) -> None:
    """What fails has its own error, though it waited with others for the same transaction."""
    started, go = threading.Event(), threading.Event()

    def hold(_db: sqlite3.Connection) -> None:
        started.set()
        go.wait()

    def insert_and_fail(db: sqlite3.Connection) -> None:
        _insert(db, "undone")
        raise LookupError

    database = await Database.open(path, [TABLE])
    holding = asyncio.create_task(database.read(hold))
    await asyncio.to_thread(started.wait)
    waiting = [
        asyncio.create_task(database.write(work))
        for work in (
            partial(_insert, thing="1"),
            insert_and_fail,
            partial(_insert, thing="2"),
        )
    ]
    await asyncio.sleep(0)
    go.set()
    _, before, failed, after = await asyncio.gather(holding, *waiting, return_exceptions=True)
    assert (before, after) == (None, None)
    assert isinstance(failed, LookupError)
    assert await database.read(_things) == ["1", "2"]
    await database.close()


async def test_those_who_wait_together_wait_once_for_somebody_else(path: Path) -> None:
    """While an operator holds the file locked, writers are told after one wait; reading goes on."""
    started, go, begun = threading.Event(), threading.Event(), []

    def hold(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA busy_timeout = 1")
        db.set_trace_callback(lambda text: begun.append(text) if text.startswith("BEGIN") else None)
        started.set()
        go.wait()

    database = await Database.open(path, [TABLE])
    await database.write(_insert, "before")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as operator:
        operator.execute("BEGIN IMMEDIATE")
        holding = asyncio.create_task(database.read(hold))
        await asyncio.to_thread(started.wait)
        waiting = (
            asyncio.create_task(database.write(_insert, "1")),
            asyncio.create_task(database.read(_things)),
            asyncio.create_task(database.write(_insert, "2")),
        )
        await asyncio.sleep(0)
        go.set()
        await holding
        one, seen, other = await asyncio.gather(*waiting, return_exceptions=True)
    assert seen == ["before"]
    for refused in (one, other):
        assert isinstance(refused, CatalogError)
        assert "locked" in str(refused)
    assert begun == ["BEGIN IMMEDIATE"]
    await database.write(_insert, "after")
    assert await database.read(_things) == ["before", "after"]
    await database.close()
