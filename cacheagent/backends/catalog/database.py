"""One SQLite file for one thread at a time: opened, migrated, and set aside where it is broken."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from cacheagent.errors import CatalogError, DiskFullError
from cacheagent.policy.layout import broken
from cacheagent.sync.lane import Ended, Lane, attempt
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

P = ParamSpec("P")
T = TypeVar("T")

_BUSY_SECONDS = 5.0
"""How long a statement waits for somebody else, say an operator who looks with ``sqlite3``."""

MOST_AT_ONCE = 64
"""What waits together becomes one transaction, up to so many of its parts."""

_PAGE = 4096
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What opening has led to."""

    connection: sqlite3.Connection
    begun_anew: bool
    set_aside: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is to be done with the connection, and whether it writes."""

    query: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    writes: bool

    def run(self, connection: sqlite3.Connection) -> object:
        """Do it."""
        return self.query(connection, *self.args, **self.kwargs)


class Database:
    """A connection with a thread of its own, in autocommit mode outside ``write``.

    ``begun_anew`` tells that no readable file was there; ``set_aside`` is where one that could
    not be read has gone. A caller that is cancelled waits until its work in the thread has ended,
    so that nothing is done behind its back later. What waits while the thread is busy is done in
    one transaction, in the order in which it came; where that fails, each part has its own, but
    for writes that have waited in vain for somebody else. So ``work`` may be called twice, and must
    do nothing but use the connection.
    """

    def __init__(self, path: Path, opened: _Opened) -> None:
        self._path = path
        self._connection = opened.connection
        # Others than the thread of the lane have work for the connection, too.
        self._using = threading.Lock()
        self._lane: Lane[_Work] = Lane(1, "catalog", self._do, MOST_AT_ONCE)
        self.begun_anew = opened.begun_anew
        self.set_aside = opened.set_aside

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str]) -> Database:
        """Open the file, or begin it, and bring its schema up to date.

        Raises: ``CatalogError`` where that cannot be done, or a newer version has written it;
        ``DiskFullError``.
        """
        return cls(path, await uninterrupted(asyncio.to_thread(_open, path, migrations)))

    async def read(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``work`` with the connection; alone, each statement of it stands for itself."""
        found: T = await self._lane.run(_Work(query=work, args=args, kwargs=kwargs, writes=False))
        return found

    async def write(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``work`` with the connection in one transaction; an error undoes all of it."""
        done: T = await self._lane.run(_Work(query=work, args=args, kwargs=kwargs, writes=True))
        return done

    def write_each(
        self, work: Callable[..., Any], arguments: Iterable[Mapping[str, Any]]
    ) -> list[Ended]:
        """Do what ``write`` does, once for each of the ``arguments``, and give what comes of each.

        It is done in the calling thread, which has to wait.
        """
        return self._do(
            [_Work(query=work, args=(), kwargs=each, writes=True) for each in arguments]
        )

    async def close(self) -> None:
        """Close the file; what is under way ends first."""
        await self._lane.close()
        await uninterrupted(asyncio.to_thread(self._close))

    def _close(self) -> None:
        with self._using:
            self._connection.close()

    def _do(self, works: Sequence[_Work]) -> list[Ended]:
        with self._using:
            return self._done(works)

    def _done(self, works: Sequence[_Work]) -> list[Ended]:
        locked = None
        if len(works) > 1 and any(work.writes for work in works):
            results, error = attempt(partial(self._together, works))
            if error is None:
                return [(result, None) for result in results]
            # All of it is undone. Alone, each is told of its own error, and of no other.
            if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_BUSY:
                # All have waited for somebody else; each alone would wait as long again.
                locked = error
        return [attempt(partial(self._alone, work, locked)) for work in works]

    def _together(self, works: Sequence[_Work]) -> list[Any]:
        with _transaction(self._connection):
            return [work.run(self._connection) for work in works]

    def _alone(self, work: _Work, locked: sqlite3.Error | None) -> object:
        with translated(self._path):
            if not work.writes:
                return work.run(self._connection)
            if locked is not None:
                raise locked.with_traceback(None)
            with _transaction(self._connection):
                return work.run(self._connection)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ours: a full disk, or a ``CatalogError`` for anything else."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            free = shutil.disk_usage(path.parent).free
            # What cannot be mapped for want of room is an error of I/O to SQLite.
            if _code(error) == sqlite3.SQLITE_FULL or free < _PAGE:
                raise DiskFullError(required_bytes=_PAGE, available_bytes=free) from error
        raise CatalogError(f"{path}: {error}") from error


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, a full disk for one.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _open(path: Path, migrations: Sequence[str]) -> _Opened:
    with translated(path):
        try:
            return _open_file(path, migrations, set_aside=None)
        except sqlite3.DatabaseError as error:
            if _code(error) not in _BROKEN:
                raise
        return _open_file(path, migrations, set_aside=_set_aside(path))


def _open_file(path: Path, migrations: Sequence[str], *, set_aside: Path | None) -> _Opened:
    # It goes from the thread that opens it to the one of the lane, and is in one at a time.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.row_factory = sqlite3.Row
        # A crash of the machine may cost the last transactions and no more; the files tell them.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # To bring the journal home holds up whoever waits, some milliseconds: in 16 MiB, not in 4.
        connection.execute("PRAGMA wal_autocheckpoint = 4096")
        connection.execute("PRAGMA foreign_keys = ON")
        _check(connection)
        begun_anew = _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return _Opened(connection=connection, begun_anew=begun_anew, set_aside=set_aside)


def _check(connection: sqlite3.Connection) -> None:
    """Read all pages once; a fault that SQLite only reports is raised like one that it meets."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        error = sqlite3.DatabaseError(verdict)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> bool:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise CatalogError(
            f"{path} was written by a newer cacheagent: its schema is {version}, "
            f"this one knows those up to {len(migrations)}"
        )
    for number in range(version, len(migrations)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {migrations[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
        )
    return bool(version == 0)


def _set_aside(path: Path) -> Path:
    """Rename the file, and what SQLite keeps beside it, to a name that is free."""
    target = next(name for number in count(1) if not (name := broken(path, number)).exists())
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    return target


def _code(error: sqlite3.Error) -> int:
    """Give the primary result code: the low byte of the extended one; 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
