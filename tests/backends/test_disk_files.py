"""The files of disks that are cloned together: durable, whatever becomes of the others."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import Clone, disks
from cacheagent.backends.store.disks import DiskFiles
from cacheagent.backends.store.templates import Template, read_template
from cacheagent.errors import DiskFullError
from cacheagent.model import DiskFormat, DiskKey, DiskName
from cacheagent.policy.layout import Layout
from tests.fakes.values import disk_key

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = disk_key(1)
OTHER = DiskKey(instance_id=KEY.instance_id, name=DiskName("other"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Give the two folders."""
    (tmp_path / "instances").mkdir()
    return Layout(state_dir=tmp_path / "state", instances_dir=tmp_path / "instances")


@pytest.fixture
def made(layout: Layout) -> Iterator[DiskFiles]:
    """Give what makes disks."""
    disk_files = DiskFiles(layout, -1, 0o600)
    yield disk_files
    disk_files.close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note what is brought to the device."""
    found: list[Path] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        found.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    return found


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Clone, Clone]:
    """Ask for two disks of an instance that has none."""
    path = tmp_path / "template"
    path.write_bytes(b"template")
    template = read_template(path)
    assert template is not None
    one, other = (
        Clone(template=template, key=key, format=DiskFormat.QCOW2, base=None)
        for key in (KEY, OTHER)
    )
    return one, other


@pytest.mark.parametrize("together", [True, False])
def test_folder_whose_maker_failed_is_durable_with_the_next_disk(
    layout: Layout,
    made: DiskFiles,
    synced: list[Path],
    clones: tuple[Clone, Clone],
    monkeypatch: pytest.MonkeyPatch,
    *,
    together: bool,
) -> None:
    """A disk is there after a power loss even where another one had made its folder and failed."""
    fill, full = disks._fill, [OSError(errno.ENOSPC, "full")]  # noqa: SLF001 -- as a device fails

    def fail_once(file: int, template: Template) -> None:
        if full:
            raise full.pop()
        fill(file, template)

    monkeypatch.setattr(disks, "_fill", fail_once)
    batches = [list(clones)] if together else [[clone] for clone in clones]
    (_, failure), (result, error) = [end for batch in batches for end in made.clone_all(batch)]
    assert failure is not None
    assert (result, error) == (True, None)
    assert layout.instances_dir in synced
    assert synced.index(layout.instances_dir) < synced.index(layout.instance(KEY.instance_id))


def test_folder_of_all_instances_is_brought_home_for_new_folders_only(
    layout: Layout, made: DiskFiles, synced: list[Path], clones: tuple[Clone, Clone]
) -> None:
    """A second disk in a folder costs one call less."""
    for clone in clones:
        assert made.clone_all([clone]) == [(True, None)]
    assert synced.count(layout.instances_dir) == 1


@pytest.mark.parametrize("way", ["clone", "finish"])
def test_a_name_that_does_not_reach_the_device_is_taken_back(
    layout: Layout,
    made: DiskFiles,
    clones: tuple[Clone, Clone],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Whoever is told that it failed finds the name free, and the disk beside it where it was."""
    one, other = clones
    assert made.clone_all([other]) == [(True, None)]
    path = layout.disk(one.key, one.format)
    fsync, full = os.fsync, [OSError(errno.ENOSPC, "full")]

    def fail_once(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().is_dir() and path.exists() and full:
            raise full.pop()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_once)
    if way == "clone":
        ((_, error),) = made.clone_all([one])
        assert isinstance(error, DiskFullError)
    else:
        made.begin(one.key, one.format)
        with pytest.raises(OSError, match="full"):
            made.finish(one.key, one.format)
    assert not full
    assert list(path.parent.iterdir()) == [layout.disk(other.key, other.format)]
    assert made.clone_all([one]) == [(True, None)]
