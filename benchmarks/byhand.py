"""What a user, or any other program, would do: the references, each a command of its own."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, Meter, spend
from benchmarks.residency import forget

if TYPE_CHECKING:
    from pathlib import Path

_CONVERSIONS = (
    ("-W", "-m", "8", "-t", "none", "-T", "none"),
    ("-W", "-m", "8", "-t", "none"),
    ("-m", "8", "-t", "none"),
    ("-W", "-m", "8"),
)
"""Options of ``qemu-img convert`` that may be the best; the last one needs a sync behind it."""


def receive(url: str, folder: Path) -> tuple[Cost, Cost]:
    """Receive what is at the address: by curl to nowhere, and by ``curl -o`` to a file."""
    file = folder / "received"
    nowhere = spend("curl", "-sSf", "-o", "/dev/null", url, what="curl -o /dev/null")
    kept = spend("curl", "-sSf", "-o", file, url, what="curl -o file")
    file.unlink()
    return nowhere, kept


def digest(path: Path, meter: Meter) -> tuple[Cost, Cost]:
    """Hash a file: by sha512sum, and by one thread of Python's hashlib."""
    command = spend("sha512sum", path, what="sha512sum")
    with meter.measuring("SHA-512 by hashlib") as library, path.open("rb") as file:
        hashlib.file_digest(file, "sha512", _bufsize=4 << 20)
    return command, library


def write(source: Path, folder: Path) -> tuple[Cost, Cost]:
    """Write a file that lies in the page cache: by ``dd``, with direct I/O and without."""
    target = folder / "written"
    words = ("dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync", "status=none")
    cached = spend(*words, what="dd conv=fsync")
    target.unlink()
    try:
        direct = spend(*words, "oflag=direct", what="dd oflag=direct conv=fsync")
    except subprocess.CalledProcessError:
        return cached, cached
    target.unlink()
    return direct, cached


def convert(source: Path, folder: Path) -> Cost:
    """Convert a qcow2 file to raw, durably, in several ways, and give the fastest.

    The file is read from its device, as one is that came by direct I/O.
    """
    target = folder / "converted"
    found = []
    for options in _CONVERSIONS:
        what = f"qemu-img convert {' '.join(options)}"
        words = ("qemu-img", "convert", *options, "-f", "qcow2", "-O", "raw")
        forget(source)
        found.append(spend(*words, source, target, what=what).plus(spend("sync", target)))
        target.unlink()
    return min(found, key=lambda cost: cost.wall)


def cold(url: str, sha512: str, disk_format: str, folder: Path, *, raw: bool) -> Cost:
    """Download, check, convert if it is to be ``raw``, sync and create an overlay."""
    file, base = folder / "by-hand", folder / "by-hand.base"
    sums = folder / "by-hand.sum"
    sums.write_text(f"{sha512}  {file}\n")
    cost = Cost(what="by hand")
    cost = cost.plus(spend("curl", "-sSf", "-o", file, url))
    cost = cost.plus(spend("sha512sum", "--check", "--quiet", sums))
    cost = cost.plus(spend("qemu-img", "info", "-f", disk_format, file))
    if raw and disk_format != "raw":
        words = ("qemu-img", "convert", "-f", disk_format, "-O", "raw")
        cost = cost.plus(spend(*words, file, base))
        disk_format = "raw"
        file.unlink()
    else:
        file.rename(base)
    cost = cost.plus(spend("sync", base))
    cost = cost.plus(warm(base, disk_format, folder / "by-hand.qcow2"))
    for path in (base, sums):
        path.unlink()
    return cost


def warm(base: Path, disk_format: str, overlay: Path) -> Cost:
    """Create an overlay of a base, durably, and remove it."""
    words = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", disk_format, "-b")
    cost = spend(*words, base, overlay, what="qemu-img create, sync")
    cost = cost.plus(spend("sync", overlay))
    overlay.unlink()
    return cost


def copy(template: Path, target: Path) -> Cost:
    """Copy a template by cp, durably, and remove the copy."""
    words = ("cp", "--reflink=auto", "--sparse=always")
    cost = spend(*words, template, target, what="cp --reflink=auto, sync")
    cost = cost.plus(spend("sync", target))
    target.unlink()
    return cost


def dump(template: Path, target: Path) -> Cost:
    """Write what is there of a template by dd, durably, and remove the copy."""
    words = ("dd", f"if={template}", f"of={target}", "bs=64K", "conv=sparse,fsync", "status=none")
    cost = spend(*words, what="dd conv=fsync")
    target.unlink()
    return cost
