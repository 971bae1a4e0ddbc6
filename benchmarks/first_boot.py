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
class Guest:
    """What a guest has: an overlay with options, over a base."""

    base: Base
    options: str

    @property
    def name(self) -> str:
        """Say so."""
        return f"{self.options} over {self.base.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Scattered reads, or writes, of so many bytes each."""

    size: int
    number: int
    step: int
    writes: bool = False

    @property
    def name(self) -> str:
        """Say how much is done."""
        return f"{self.number * self.size // MIB} MiB {'written' if self.writes else 'read'}"


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
    guests = [Guest(base=base, options=OPTIONS[0]) for base in bases]
    guests += [Guest(base=bases[0], options=options) for options in OPTIONS[1:]]
    _measured(run, guests, _access(image, READ, run.scale(200, 1) * MIB))
    _measured(run, guests, _access(image, WRITE, run.scale(16, 1) * MIB, writes=True))


def _access(image: int, size: int, total: int, *, writes: bool = False) -> Access:
    # An odd number of steps shares no factor with the length of the image.
    step = (int(image * _GOLDEN) // size | 1) * size
    return Access(size=size, number=total // size, step=step, writes=writes)


def _measured(run: Run, guests: Sequence[Guest], access: Access) -> None:
    """Set each guest beside the first one; they take turns, so that each has the same weather."""
    overlay = run.folder / "overlay.qcow2"
    rounds = [[_cost(guest, access, overlay) for guest in guests] for _ in range(run.scale(5, 1))]
    costs = [
        sorted(turns, key=lambda cost: cost.wall)[len(rounds) // 2]
        for turns in zip(*rounds, strict=True)
    ]
    run.costs += costs
    for guest, cost in zip(guests[1:], costs[1:], strict=True):
        figures = {"": (cost.wall, costs[0].wall), ", CPU": (cost.cpu, costs[0].cpu)}
        run.figures += [
            Figure(
                what=f"{access.name}, {guest.name}{kind}",
                measured=measured,
                unit="s",
                reference=reference,
                beside=guests[0].name,
            )
            for kind, (measured, reference) in figures.items()
        ]


def _cost(guest: Guest, access: Access, overlay: Path) -> Cost:
    """Let the guest boot, with an overlay that nobody has used."""
    base = guest.base
    words = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", guest.options)
    spend(*words, "-F", base.disk_format, "-b", base.path, overlay)
    forget(base.path)
    bench = ["qemu-img", "bench", "-f", "qcow2", "-t", "none", "-d", "4"]
    bench += ["-c", str(access.number), "-s", str(access.size), "-S", str(access.step)]
    bench += ["-w"] if access.writes else []
    cost = spend(*bench, overlay, what=f"{access.name}, {guest.name}")
    overlay.unlink()
    return cost
