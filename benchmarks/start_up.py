"""How long the daemon takes until it is ready, on a host with many disks.

    .venv/bin/python benchmarks/start_up.py --disks 10000 --bases 500

The reference is a start with empty folders. CPU is that of the daemon until it says that it is
ready; what it does afterwards beside the requests is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleet import Fleet, configuration, fill, parts_in
from report import Row, show

TIMEOUT = 300.0
UTIME, STIME = 13, 14
"""Places in /proc/PID/stat (proc_pid_stat(5)), counted from 0."""


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--disks", type=int, default=10_000)
    parser.add_argument("--bases", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where to make them (default: a temporary one)")
    asked = parser.parse_args()
    fleet = Fleet(disks=asked.disks, bases=asked.bases, unused=0)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-", dir=asked.folder) as folder,
        tempfile.TemporaryDirectory(prefix="benchmark-", dir=asked.folder) as nothing,
    ):
        asyncio.run(_filled(Path(folder), fleet))
        reference = _start(Path(nothing), "empty folders")
        rows = [
            reference,
            _start(Path(folder), "with the catalog"),
            _start(_without_catalog(Path(folder)), "the catalog was deleted"),
            _start(Path(folder), "with the catalog that was made anew"),
        ]
        show(rows, reference, {"disks": fleet.disks, "bases": fleet.bases}, Path(folder))


async def _filled(folder: Path, fleet: Fleet) -> None:
    async with parts_in(folder) as parts:
        await fill(parts, fleet)


def _without_catalog(folder: Path) -> Path:
    for path in (folder / "state").glob("catalog.db*"):
        path.unlink()
    return folder


def _start(folder: Path, what: str) -> Row:
    """Start a daemon, wait until it is ready, and stop it."""
    config = folder / "config.toml"
    config.write_text(_toml(configuration(folder)))
    told = folder / "notify"
    told.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(told))
        notify.settimeout(TIMEOUT)
        begun = time.perf_counter()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "cacheagent", "serve", "--config", str(config)],
            env={**os.environ, "NOTIFY_SOCKET": str(told)},
        )
        try:
            while not notify.recv(4096).startswith(b"READY=1"):
                pass
            return Row(
                what=what, wall=time.perf_counter() - begun, cpu=_cpu_of(daemon.pid), processes=1
            )
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(TIMEOUT)


def _cpu_of(pid: int) -> float:
    # The name, in parentheses, may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[UTIME - 2]) + int(fields[STIME - 2])
    return ticks / os.sysconf("SC_CLK_TCK")


def _toml(sections: dict[str, dict[str, object]]) -> str:
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value!r}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
