"""What a guest pays at its first boot: scattered reads and writes through a fresh overlay.

The bases hold the same content: raw, qcow2, and compressed qcow2 as cloud images come. The reads
go past the page cache, as those of a guest with ``cache=none`` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, spend
from benchmarks.figures import Figure, Run
from benchmarks.gallery import MIB, Gallery
from benchmarks.residency import forget

if TYPE_CHECKING:
    from collections.abc import Sequence

READ = 16 << 10
WRITE = 4 << 10
OPTIONS = (
    "cluster_size=64k",
    "cluster_size=128k",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=128k,extended_l2=on",
    "cluster_size=2M",
    "cluster_size=2M,extended_l2=on",
)
"""Of overlays; the first one is what qemu-img does by itself."""

_GOLDEN = 0.618
"""Steps of this part of the image come everywhere, and nowhere twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base to read through."""

    name: str
    path: Path
    disk_format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Scattered reads, or writes, of so many bytes each."""

    size: int
    number: int
    step: int
    writes: bool = False


def measure(run: Run) -> None:
    """Read and write through overlays of each base, and of each kind."""
    gallery = Gallery(run.folder)
    image = run.scale(2048, 16) * MIB
    raw = gallery.raw(image)
    bases = [
        Base(name="raw", path=raw, disk_format="raw"),
        Base(name="qcow2", path=gallery.qcow2(raw), disk_format="qcow2"),
        Base(
            name="compressed qcow2",
            path=gallery.qcow2(raw, compressed=True),
            disk_format="qcow2",
        ),
    ]
    reads = _access(image, READ, run.scale(200, 1) * MIB)
    writes = _access(image, WRITE, run.scale(16, 1) * MIB, writes=True)
    for access in (reads, writes):
        _bases(run, bases, access)
        _options(run, bases[0], access)


def _access(image: int, size: int, total: int, *, writes: bool = False) -> Access:
    # An odd number of steps shares no factor with the length of the image.
    step = (int(image * _GOLDEN) // size | 1) * size
    return Access(size=size, number=total // size, step=step, writes=writes)


def _bases(run: Run, bases: Sequence[Base], access: Access) -> None:
    reference = _cost(run, bases[0], OPTIONS[0], access)
    for base in bases[1:]:
        cost = _cost(run, base, OPTIONS[0], access)
        _tell(run, f"over {base.name}", cost, reference, "over raw")


def _options(run: Run, base: Base, access: Access) -> None:
    reference = _cost(run, base, OPTIONS[0], access)
    for options in OPTIONS[1:]:
        cost = _cost(run, base, options, access)
        _tell(run, f"by an overlay with {options}", cost, reference, OPTIONS[0])


def _tell(run: Run, what: str, cost: Cost, reference: Cost, beside: str) -> None:
    done, _, _ = cost.what.partition(",")
    figures = {"": (cost.wall, reference.wall), ", CPU": (cost.cpu, reference.cpu)}
    run.figures += [
        Figure(
            what=f"{done} {what}{kind}",
            measured=measured,
            unit="s",
            reference=plain,
            beside=beside,
        )
        for kind, (measured, plain) in figures.items()
    ]


def _cost(run: Run, base: Base, options: str, access: Access) -> Cost:
    """Give the median of several guests, each with an overlay of its own."""
    times = run.scale(3, 1)
    costs = [_guest(run.folder / "overlay.qcow2", base, options, access) for _ in range(times)]
    found = sorted(costs, key=lambda cost: cost.wall)[times // 2]
    run.costs.append(found)
    return found


def _guest(overlay: Path, base: Base, options: str, access: Access) -> Cost:
    words = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-F", base.disk_format)
    spend(*words, "-b", base.path, overlay)
    forget(base.path)
    done = "written" if access.writes else "read"
    bench = ["qemu-img", "bench", "-f", "qcow2", "-t", "none", "-d", "4"]
    bench += ["-c", str(access.number), "-s", str(access.size), "-S", str(access.step)]
    bench += ["-w"] if access.writes else []
    total = access.number * access.size // MIB
    cost = spend(
        *bench, overlay, what=f"{total} MiB {done}, {base.name} base, overlay with {options}"
    )
    overlay.unlink()
    return cost
