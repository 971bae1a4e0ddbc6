"""What machine the figures are from."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import webserver


def describe(folder: Path) -> dict[str, str]:
    """Describe this machine, the file system of ``folder`` and the programs, by name."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "measured on": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release().partition("-")[0],
        "file system": _said("findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)),
        "Python": platform.python_version(),
        "QEMU": _said("qemu-img", "--version").splitlines()[0].split()[2],
        "image service": webserver.name(),
    }


def _processor() -> str:
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    names = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(names, platform.machine())


def _said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
