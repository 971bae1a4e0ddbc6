"""A daemon to be measured: its own process, on folders that were made for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, cpu_of
from benchmarks.fleet import configuration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_PATIENCE = 300.0
_UNIT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "524288",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
}
"""What the unit of the daemon sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A daemon that is ready: its process, its socket, and what its start cost."""

    pid: int
    socket: str
    start: Cost


@contextlib.contextmanager
def daemon_on(
    folder: Path,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    what: str = "start",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """Run a daemon in ``folder``, with ``settings`` over those of a fleet, and stop it.

    ``environment`` is added to that of this process.
    """
    folder.mkdir(exist_ok=True)
    sections = configuration(folder)
    for name, section in (settings or {}).items():
        sections[name] = {**sections.get(name, {}), **section}
    config = folder / "config.toml"
    config.write_text(_toml(sections))
    begun = time.perf_counter()
    process = _ready(folder, config, environment or {})
    try:
        wall = time.perf_counter() - begun
        start = Cost(what=what, wall=wall, cpu=cpu_of(process.pid), processes=1)
        yield Daemon(pid=process.pid, socket=str(sections["api"]["socket"]), start=start)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE)


def _ready(folder: Path, config: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon, and wait until it says that it is ready (sd_notify(3)).

    Raises: ``TimeoutError`` where it does not.
    """
    told = folder / "notify"
    told.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(told))
        notify.settimeout(_PATIENCE)
        process = subprocess.Popen(
            [sys.executable, "-m", "cacheagent", "serve", "--config", str(config)],
            env={**os.environ, **_UNIT, **environment, "NOTIFY_SOCKET": str(told)},
        )
        try:
            while not notify.recv(4096).startswith(b"READY=1"):
                pass
        except BaseException:
            process.kill()
            process.wait()
            raise
    return process


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value!r}" for key, value in section.items()]
    return "\n".join(lines) + "\n"
