"""What lies in the store's folders, for the policy to say what of it is ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cacheagent.policy.inventory import Folder, Listing

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.policy.layout import Layout


def list_folders(layout: Layout) -> Listing:
    """List all folders that the layout knows; one that cannot be read is None."""
    instances, others = _instances(layout.instances_dir)
    return Listing(
        bases=_folder(layout.bases),
        ingest=_folder(layout.ingest),
        templates=_folder(layout.templates),
        trash=_folder(layout.trash),
        quarantine=_folder(layout.quarantine),
        instances=instances,
        instances_others=others,
    )


def _instances(path: Path) -> tuple[dict[str, Folder | None] | None, frozenset[str]]:
    """List the folders of the instances, and what lies beside them."""
    entries = _entries(path)
    if entries is None:
        return None, frozenset()
    names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    folders = {name: _folder(path / name) for name in names}
    # One that went since it was listed is no doubt.
    there = {
        name: folder
        for name, folder in folders.items()
        if folder is not None or os.path.lexists(path / name)
    }
    # Nobody knows what lies behind a link, least of all while it leads nowhere.
    links = {entry.name: None for entry in entries if entry.is_symlink()}
    others = frozenset(entry.name for entry in entries) - names - links.keys()
    return {**there, **links}, others


def _folder(path: Path) -> Folder | None:
    entries = _entries(path)
    if entries is None:
        return None
    files = frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return Folder(files=files, others=frozenset(entry.name for entry in entries) - files)


def _entries(path: Path) -> list[os.DirEntry[str]] | None:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return None
