"""The files of refused images: kept for people to look at, and never opened again by the agent.

Everything here blocks, and is meant for the store's own threads.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from cacheagent.backends.store import files
from cacheagent.model import ImageId
from cacheagent.policy.layout import (
    parse_base_name,
    parse_refused_name,
    unfinished,
)
from cacheagent.policy.quarantine import Contents, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cacheagent.policy.layout import Layout, RefusedName

REFUSED_MODE = 0o400
"""The rights of what was refused: nobody but the agent's user reads it, no hypervisor opens it."""

LONGEST_RECORD = 64 << 10
"""Bytes of a record that are read: ours are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalRecord:
    """What was found in a refused image, and what Glance had said of it.

    ``size`` is bytes as Glance told it; ``algorithm`` and ``digest`` are those of the bytes that
    came, None where nobody reckoned them to the end.
    """

    image_id: ImageId
    reason: str
    detail: str
    disk_format: str | None
    container_format: str | None
    size: int | None
    algorithm: str | None
    digest: str | None
    at: datetime


_ADAPTER = TypeAdapter(RefusalRecord)


def keep(layout: Layout, source: Path, name: RefusedName, record: RefusalRecord) -> None:
    """Move a refused image into quarantine, after its record.

    A crash in between leaves the record alone there, which the next start removes. Nothing in
    quarantine of that name counts for anything: it is of the same image, and replaced.
    """
    with files.open_fd(source, os.O_RDONLY) as fd:
        os.fchmod(fd, REFUSED_MODE)
        os.fsync(fd)
    target = layout.refused_record(name)
    making = unfinished(target)
    making.unlink(missing_ok=True)
    with files.open_fd(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, REFUSED_MODE) as fd:
        files.write_all(fd, _ADAPTER.dump_json(record, indent=1), 0)
        os.fsync(fd)
    files.move(making, target)
    files.move(source, layout.refused(name))


def contents(layout: Layout) -> Contents:
    """Measure what lies in quarantine."""
    refused: list[Refused] = []
    damaged = 0
    for path in layout.quarantine.iterdir():
        name = parse_refused_name(path.name)
        # One may go while the folder is read. What is no file of ours is not looked at.
        with contextlib.suppress(FileNotFoundError):
            if name is not None and files.is_regular(path):
                refused.append(Refused(name=name, allocated=files.allocated(path)))
            elif parse_base_name(path.name) is not None:
                damaged += files.allocated(path)
    return Contents(refused=tuple(refused), damaged=damaged)


def read_records(
    layout: Layout, names: Iterable[RefusedName]
) -> dict[RefusedName, RefusalRecord | None]:
    """Read what was found in each; None where there is no record that is any use."""
    return {name: _read(layout.refused_record(name)) for name in names}


def drop(layout: Layout, names: Iterable[RefusedName]) -> None:
    """Remove the files, each before its record; what is not there is fine."""
    for name in names:
        layout.refused(name).unlink(missing_ok=True)
        layout.refused_record(name).unlink(missing_ok=True)


def _read(path: Path) -> RefusalRecord | None:
    try:
        with files.open_fd(path, os.O_RDONLY) as fd:
            return _ADAPTER.validate_json(os.read(fd, LONGEST_RECORD))
    except (OSError, ValidationError):
        return None
