"""What fits onto a terminal."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from tests.fakes.daemon import CACHED, COMING, INSTANCE, TWIN

if TYPE_CHECKING:
    from tests.cli.conftest import Run
    from tests.fakes.daemon import FakeDaemon

    Screen = list[str]


def on_terminal(address: str, width: int, *words: str) -> Screen:
    """Run a command on a terminal of ``width`` columns, and give the lines that it shows."""
    screen, terminal = os.openpty()
    environment = {"CACHEAGENT_SOCKET": address, "COLUMNS": str(width), "TERM": "xterm"}
    try:
        subprocess.run(
            [sys.executable, "-m", "cacheagent", *words],
            env=os.environ | environment,
            stdout=terminal,
            check=True,
        )
    finally:
        os.close(terminal)
    shown = b""
    with open(screen, "rb", buffering=0) as output, contextlib.suppress(OSError):  # noqa: PTH123 -- a descriptor
        while part := output.read(4096):  # an error is how a terminal that nobody writes to ends
            shown += part
    return [line.rstrip() for line in click.unstyle(shown.decode()).splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_ids_stay_whole_in_a_narrow_terminal(
    run: Run, daemon: FakeDaemon, address: str, width: int
) -> None:
    """An id can be copied from a list, and each line of a list is one image or disk."""
    run("image", "pull", COMING, "--no-wait")
    run("image", "show", COMING)
    images = on_terminal(address, width, "image", "list")
    assert [line.split()[0] for line in images] == ["IMAGE", CACHED, TWIN, COMING]
    assert ("LAST USED" in images[0]) == (width == 120)
    run("disk", "create", INSTANCE, "root", "--image", CACHED)
    disks = on_terminal(address, width, "disk", "list")
    assert [line.split()[0] for line in disks] == ["INSTANCE", INSTANCE]
    assert (CACHED in disks[1]) == (width == 120)
    assert all(len(line) <= width for line in images + disks)
    assert daemon.disks


def test_a_path_is_one_line_however_long(address: str, daemon: FakeDaemon) -> None:
    """The terminal wraps it, so that it can be copied whole."""
    path = f"/srv/bases/sha512-{'ab' * 64}.raw"
    daemon.images[CACHED]["base"]["path"] = path
    shown = on_terminal(address, 80, "image", "show", CACHED)
    assert ["base", path] in [line.split() for line in shown]


def test_times_in_a_list_are_short(run: Run) -> None:
    """The minute is enough to see what was used lately."""
    assert "2026-03-01 10:00\n" in run("image", "list").output
