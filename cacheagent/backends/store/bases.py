"""The files of bases: published with their manifest, thrown away, put back.

Everything here blocks, and is meant for the store's own threads. Who moves a base holds its lock.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cacheagent.backends.store import files, manifest
from cacheagent.policy.layout import (
    parse_base_name,
    parse_manifest_name,
    parse_template_name,
    unfinished,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.store.manifest import Manifest
    from cacheagent.model import BaseId, DiskFormat
    from cacheagent.policy.layout import Layout

BASE_MODE = 0o440


class BaseFiles:
    """The files of all bases of one layout; ``group`` owns them, -1 is the daemon's own."""

    def __init__(self, layout: Layout, group: int) -> None:
        self._layout = layout
        self._group = group

    def publish(self, source: Path, record: Manifest) -> Manifest:
        """Give a verified file its name, after its manifest; see ``Store.publish``."""
        base = record.base
        with files.open_fd(source, os.O_RDONLY) as fd:
            os.fchown(fd, -1, self._group)
            os.fchmod(fd, BASE_MODE)
            os.fsync(fd)
        record = manifest.measured(record, files.allocated(source))
        self.write_manifest(record)
        files.move(source, self._layout.base(base.base_id, base.format))
        return record

    def write_manifest(self, record: Manifest) -> None:
        """Write the manifest of a base in place of an older one."""
        target = self._layout.manifest(record.base.base_id, record.base.format)
        making = unfinished(target)
        making.unlink(missing_ok=True)
        with files.open_fd(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, BASE_MODE) as fd:
            files.write_all(fd, manifest.dump(record), 0)
            os.fchown(fd, -1, self._group)
            os.fsync(fd)
        files.move(making, target)

    def trash(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Move base and manifest into the trash, and remove the templates."""
        layout = self._layout
        base, record = layout.base(base_id, disk_format), layout.manifest(base_id, disk_format)
        with contextlib.suppress(FileNotFoundError):
            files.move(base, layout.trashed(base_id, disk_format))
        with contextlib.suppress(FileNotFoundError):
            files.move(record, layout.trashed_manifest(base_id, disk_format))
        for template in layout.templates.iterdir():
            name = parse_template_name(template.name)
            if name is not None and name.base_id == base_id:
                template.unlink(missing_ok=True)

    def restore(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Move manifest and base back, in this order."""
        layout = self._layout
        _put_back(
            layout.trashed_manifest(base_id, disk_format), layout.manifest(base_id, disk_format)
        )
        _put_back(layout.trashed(base_id, disk_format), layout.base(base_id, disk_format))

    def drop_trashed(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Remove base and manifest from the trash, in this order."""
        self._layout.trashed(base_id, disk_format).unlink(missing_ok=True)
        self._layout.trashed_manifest(base_id, disk_format).unlink(missing_ok=True)

    def empty_trash(self) -> None:
        """Remove all bases and manifests from the trash."""
        for path in list(self._layout.trash.iterdir()):
            ours = parse_base_name(path.name) or parse_manifest_name(path.name)
            if ours and files.is_regular(path):
                path.unlink(missing_ok=True)

    def quarantine(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Move a damaged base, then its manifest, into quarantine."""
        layout = self._layout
        base, record = layout.base(base_id, disk_format), layout.manifest(base_id, disk_format)
        with contextlib.suppress(FileNotFoundError):
            files.move(base, layout.quarantined(base_id, disk_format))
        with contextlib.suppress(FileNotFoundError):
            files.move(record, layout.quarantined_manifest(base_id, disk_format))

    def drop_quarantined(self, base_id: BaseId, disk_format: DiskFormat) -> None:
        """Remove base and manifest from quarantine, in this order."""
        self._layout.quarantined(base_id, disk_format).unlink(missing_ok=True)
        self._layout.quarantined_manifest(base_id, disk_format).unlink(missing_ok=True)


def read_manifest(layout: Layout, base_id: BaseId, disk_format: DiskFormat) -> Manifest | None:
    """Read the manifest of a base, which may lie in the trash; None where it is no use."""
    found = _read(layout.manifest(base_id, disk_format))
    return found or _read(layout.trashed_manifest(base_id, disk_format))


def _put_back(source: Path, target: Path) -> None:
    # Nobody but the holder of the base's lock makes this name, so looking first is enough.
    if files.is_regular(source) and not os.path.lexists(target):
        files.move(source, target)


def _read(path: Path) -> Manifest | None:
    try:
        with files.open_fd(path, os.O_RDONLY) as fd:
            return manifest.load(os.read(fd, os.fstat(fd).st_size))
    except OSError:
        return None
