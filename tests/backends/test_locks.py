"""The kernel's view of a file, with a real QEMU that has it open."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends import locks
from tests.needs import require_programs
from tests.qemuio import opened_by_qemu

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Give a raw file of one MiB."""
    path = tmp_path / "base.raw"
    path.write_bytes(b"\1" * (1 << 20))
    return path


def test_a_file_that_nobody_has_open_is_not_in_use(base: Path) -> None:
    """Without a lock there is no proof of use."""
    assert not locks.in_use(base)


def test_a_file_is_in_use_while_qemu_reads_it(base: Path) -> None:
    """A reader counts, and only for as long as it is there."""
    with opened_by_qemu("-r", "-f", "raw", str(base)):
        assert locks.in_use(base)
    assert not locks.in_use(base)


def test_a_base_is_in_use_while_qemu_has_an_overlay_open(base: Path, tmp_path: Path) -> None:
    """QEMU locks the whole chain, so the base tells it too."""
    overlay = tmp_path / "overlay.qcow2"
    require_programs("qemu-img")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay], check=True
    )
    with opened_by_qemu("-f", "qcow2", str(overlay)):
        assert locks.in_use(base)
        assert locks.in_use(overlay)
    assert not locks.in_use(base)


def test_a_question_takes_no_lock(base: Path) -> None:
    """Two questions at a time do not see each other, and QEMU can write afterwards."""
    assert not locks.in_use(base)
    with opened_by_qemu("-f", "raw", str(base)):
        assert locks.in_use(base)


def test_what_cannot_be_asked_is_an_error(base: Path, tmp_path: Path) -> None:
    """A file that is gone, and a link in place of one, give an error and no answer."""
    link = tmp_path / "link"
    link.symlink_to(base)
    with pytest.raises(OSError, match="symbolic links"):
        locks.in_use(link)
    with pytest.raises(FileNotFoundError):
        locks.in_use(tmp_path / "missing")
