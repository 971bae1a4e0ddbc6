"""What a user, or any other program, would do: the references, each a command of its own."""

from __future__ import annotations

import hashlib
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, Meter, spend
from benchmarks.residency import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_CONVERSIONS = (
    "-W -m 16",
    "-W -m 4 -t none",
    "-W -m 2 -t none -T none aio=native",
    "-W -m 16 -t none -T none aio=native",
)
"""Options of ``qemu-img convert`` that were the best of some twenty sets, each in its place."""

_NATIVE = " aio=native"
"""What is no option: the driver of the target is told so, which has to be there before."""


def receive(url: str, folder: Path) -> Sequence[Callable[[], Cost]]:
    """Receive what is at the address: by curl to nowhere, or by ``curl -o`` to a file."""

    def kept() -> Cost:
        file = folder / "received"
        cost = spend("curl", "-sSf", "-o", file, url, what="curl -o file")
        file.unlink()
        return cost

    nowhere = partial(spend, "curl", "-sSf", "-o", "/dev/null", url, what="curl -o /dev/null")
    return nowhere, kept


def digest(path: Path, meter: Meter) -> Sequence[Callable[[], Cost]]:
    """Hash a file: by sha512sum, or by one thread of Python's hashlib."""

    def library() -> Cost:
        with meter.measuring("SHA-512 by hashlib") as cost, path.open("rb") as file:
            hashlib.file_digest(file, "sha512", _bufsize=4 << 20)
        return cost

    return partial(spend, "sha512sum", path, what="sha512sum"), library


def write(source: Path, folder: Path) -> Sequence[Callable[[], Cost]]:
    """Write a file that lies in the page cache: by ``dd``, with direct I/O or without."""
    target = folder / "written"
    words = ("dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync", "status=none")

    def cached() -> Cost:
        cost = spend(*words, what="dd conv=fsync")
        target.unlink()
        return cost

    def direct() -> Cost:
        try:
            cost = spend(*words, "oflag=direct", what="dd oflag=direct conv=fsync")
        except subprocess.CalledProcessError:
            return cached()
        target.unlink()
        return cost

    return cached, direct


def convert(source: Path, size: int, folder: Path) -> Sequence[Callable[[], Cost]]:
    """Convert a qcow2 file of a disk of ``size`` bytes to raw, durably, in several ways.

    The file is read from its device, as one is that came by direct I/O.
    """
    target = folder / "converted"

    def converted(options: str) -> Cost:
        cost = Cost(what=f"qemu-img convert {options}")
        words = ["qemu-img", "convert", *options.removesuffix(_NATIVE).split(), "-f", "qcow2"]
        if options.endswith(_NATIVE):
            cost = cost.plus(spend("qemu-img", "create", "-q", "-f", "raw", target, str(size)))
            words += ["-n", "--target-is-zero", "--target-image-opts", str(source)]
            words.append(f"driver=raw,file.driver=file,file.aio=native,file.filename={target}")
        else:
            words += ["-O", "raw", str(source), str(target)]
        forget(source)
        cost = cost.plus(spend(*words)).plus(spend("sync", target))
        target.unlink()
        return cost

    return [partial(converted, options) for options in _CONVERSIONS]


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
