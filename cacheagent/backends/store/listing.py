"""What lies in the store's folders, for the policy to say what of it is ours."""

from __future__ import annotations

import os
from sys import intern
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


def _instances(path: Path) -> tuple[dict[str, Folder | None] | None, tuple[str, ...]]:
    """List the folders of the instances, and what lies beside them."""
    names: list[str] = []
    found: dict[str, Folder | None] = {}
    others: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                elif entry.is_symlink():
                    # Nobody knows what lies behind a link, least of all while it leads nowhere.
                    found[entry.name] = None
                else:
                    others.append(entry.name)
    except OSError:
        return None, ()
    for name in names:
        inside = f"{path}/{name}"
        folder = _folder(inside)
        # One that went since it was listed is no doubt.
        if folder is not None or os.path.lexists(inside):
            found[name] = folder
    return found, tuple(others)


def _folder(path: Path | str) -> Folder | None:
    files: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                is_file = entry.is_file(follow_symlinks=False)
                # Ten thousand instances have disks of the same few names.
                (files if is_file else others).append(intern(entry.name))
    except OSError:
        return None
    return Folder(files=tuple(files), others=tuple(others))
