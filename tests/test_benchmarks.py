"""The benchmarks still run, and a pass still starts no process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.needs import require_programs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--disks", "20", "--bases", "6"]


def _rows(script: str, *arguments: str) -> list[dict[str, Any]]:
    """Run a benchmark, and give what it measured."""
    require_programs("qemu-img")
    command = [sys.executable, str(BENCHMARKS / script), *SMALL, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])["rows"]
    return rows


def test_a_pass_starts_no_process() -> None:
    """Planning, a pass with nothing to do and one that evicts read headers by themselves."""
    plain, qemu_img, *passes = _rows("prune_pass.py", "--evict", "2")
    assert (plain["processes"], qemu_img["processes"]) == (0, 20)
    assert [row["processes"] for row in passes] == [0] * 4


@pytest.mark.timeout(120)
def test_the_start_of_a_daemon_can_be_measured() -> None:
    """Every start, also one without a catalog, ends in a daemon that is ready."""
    rows = _rows("start_up.py")
    assert len(rows) == 4
    assert all(row["wall"] > 0 for row in rows)
