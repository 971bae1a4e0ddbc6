"""What the beginnings of files say, and how long that is believed."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.qcow2.heads import Head, Heads
from tests.fakes.qcow2 import write_header

if TYPE_CHECKING:
    from pathlib import Path

    from pytest import MonkeyPatch  # noqa: PT013 for an annotation only


@pytest.fixture
def reads(monkeypatch: MonkeyPatch) -> list[str]:
    """Note the paths of all files that are opened."""
    opened: list[str] = []
    real = os.open

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", noted)
    return opened


def _later(monkeypatch: MonkeyPatch, seconds: int = 10) -> None:
    now = time.time_ns() + seconds * 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)


def _of(heads: Heads, path: Path) -> Head:
    return heads.of(str(path), path.stat())


def test_a_file_that_is_the_same_is_read_once(
    tmp_path: Path, monkeypatch: MonkeyPatch, reads: list[str]
) -> None:
    """A scan costs no reading where nothing changed since the last one."""
    path = write_header(tmp_path / "disk", name=b"base")
    reads.clear()
    _later(monkeypatch)
    heads = Heads()
    for _ in range(3):
        heads.next_scan()
        assert _of(heads, path) == Head(backing="base")
    assert reads == [str(path)]


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Another name in the header, or another file in its place, is seen by the next scan."""
    path = write_header(tmp_path / "disk", name=b"one")
    _later(monkeypatch)
    heads = Heads()
    assert _of(heads, path).backing == "one"
    write_header(path, name=b"two")
    os.utime(path, ns=(1, 1))
    heads.next_scan()
    assert _of(heads, path).backing == "two"
    write_header(tmp_path / "other", name=b"six").rename(path)
    heads.next_scan()
    assert _of(heads, path).backing == "six"


def test_a_file_that_is_fresh_is_not_believed(tmp_path: Path, reads: list[str]) -> None:
    """What changed a moment ago may change again under the same time, and is read each time."""
    path = write_header(tmp_path / "disk", name=b"one")
    reads.clear()
    heads = Heads()
    for _ in range(2):
        heads.next_scan()
        _of(heads, path)
    assert reads == [str(path)] * 2


def test_what_a_scan_does_not_see_is_forgotten(
    tmp_path: Path, monkeypatch: MonkeyPatch, reads: list[str]
) -> None:
    """The memory is as large as the last scan, whatever came and went before."""
    path = write_header(tmp_path / "disk")
    reads.clear()
    _later(monkeypatch)
    heads = Heads()
    _of(heads, path)
    heads.next_scan()
    heads.next_scan()
    _of(heads, path)
    assert reads == [str(path)] * 2


def test_only_what_calls_itself_qcow2_is_searched(tmp_path: Path) -> None:
    """A broken header names what stands near it; a raw disk names nothing, whatever it holds."""
    name = f"sha256-{1:064x}.raw"
    broken = write_header(tmp_path / "broken", version=9, name=name.encode())
    assert _of(Heads(), broken) == Head(mentioned=frozenset({name}))
    raw = tmp_path / "raw"
    raw.write_text(name)
    assert _of(Heads(), raw) == Head()
    os.mkfifo(tmp_path / "pipe")
    assert _of(Heads(), tmp_path / "pipe") == Head()
