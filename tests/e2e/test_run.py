"""What scripts/run shows to somebody who tries the project."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.needs import require_programs

RUN = Path(__file__).resolve().parents[2] / "scripts" / "run"

pytestmark = pytest.mark.timeout(300)


def test_the_demonstration_shows_a_hit() -> None:
    """Of three disks of two images the second costs no download, and each has its base."""
    require_programs("apt-get", "curl", "qemu-img")
    shown = subprocess.run(
        [RUN],
        env={**os.environ, "CACHEAGENT_DEMO_ONCE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    disks = [line for line in shown.stdout.splitlines() if ", cache " in line]
    assert [disk.split("cache ")[1].split(":")[0] for disk in disks] == ["miss", "hit", "miss"]
    assert "backing file format: raw" in shown.stdout
    assert "cacheagent_download_seconds_count 2.0" in shown.stdout


def test_the_demonstration_goes_on_until_it_is_stopped() -> None:
    """It serves until Ctrl-C, and then its servers are gone too."""
    require_programs("apt-get", "curl", "qemu-img")
    # Whoever runs the tests in the background has the signal ignored, and all children with them.
    with subprocess.Popen(
        ["env", "--default-signal=INT", RUN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        told = next(line for line in process.stdout if "until Ctrl-C" in line)
        assert told.startswith("Both go on")
        # What a terminal does: the signal goes to the script and to its servers alike.
        os.killpg(process.pid, signal.SIGINT)
        # The pipe ends only when none of them has it open any more.
        process.stdout.read()
        assert process.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
