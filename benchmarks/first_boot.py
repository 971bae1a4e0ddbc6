"""What a guest pays at its first boot: reads through a fresh overlay, and first writes into it.

The bases hold the same content: raw, qcow2, and compressed qcow2 as cloud images come. A cold base
is read past the page cache, as a guest with ``cache=none`` does; a warm one lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, spend, spend_at_once
from benchmarks.figures import Figure, Run
from benchmarks.gallery import MIB, Gallery
from benchmarks.residency import forget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KIB = 1 << 10
BY_ITSELF = "cluster_size=64k"
"""What qemu-img does without being told."""

OPTIONS = (
    "cluster_size=64k,extended_l2=on",
    "cluster_size=128k,extended_l2=on",
    "cluster_size=2M",
)
"""Of overlays, to be set beside that."""

CROWD = 4
"""Guests that boot at once."""

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
    """What a guest has: an overlay with options, over a base; and how many of them there are."""

    base: Base
    options: str = BY_ITSELF
    number: int = 1

    @property
    def name(self) -> str:
        """Say so."""
        who = f"by each of {self.number} guests at once, " if self.number > 1 else ""
        options = "" if self.options == BY_ITSELF else f"{self.options} "
        return f"{who}{options}over {self.base.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Requests of ``size`` bytes, ``total`` in all: scattered, or one behind the other.

    Four are under way at a time. ``flushed``: each is made durable before the next begins.
    """

    size: int
    total: int
    step: int
    writes: bool = False
    flushed: bool = False
    warm: bool = False

    @property
    def name(self) -> str:
        """Say how much is done."""
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        done = "written" if self.writes else "read"
        where = "in order" if self.step == self.size else "scattered"
        how = f"{', flushed' if self.flushed else ''}{', warm' if self.warm else ''}"
        return f"{self.total // MIB} MiB {done} by {size}, {where}{how}"

    @property
    def words(self) -> Sequence[str]:
        """The command that does it, but for the overlay."""
        words = ["qemu-img", "bench", "-f", "qcow2", "-t", "writeback" if self.warm else "none"]
        words += ["-c", str(self.total // self.size), "-s", str(self.size), "-S", str(self.step)]
        words += ["-d", "1", "--flush-interval", "1"] if self.flushed else ["-d", "4"]
        return [*words, "-w"] if self.writes else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """What a guest paid: the cost, and the bytes that its overlay takes then."""

    cost: Cost
    allocated: int


def measure(run: Run) -> None:
    """Read through overlays of each base; write into those of each kind."""
    gallery = Gallery(run.folder)
    image = run.scale(1024, 16) * MIB
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
    _tell_bases(run, bases)
    readers = [Guest(base=base) for base in bases]
    for access in _reads(run, image):
        _tell(run, access, _measured(run, readers, access))
    for access in _reads_of_many(run, image):
        crowd = [replace(guest, number=run.scale(CROWD, 2)) for guest in readers]
        _tell(run, access, _measured(run, crowd, access))
    writers = [Guest(base=bases[0], options=options) for options in (BY_ITSELF, *OPTIONS)]
    for access in _writes(run, image):
        _tell(run, access, _measured(run, [*writers, readers[-1]], access))


def _reads(run: Run, image: int) -> Iterator[Access]:
    total = run.scale(200, 1) * MIB
    yield _scattered(image, 4 * KIB, run.scale(32, 1) * MIB)
    for size in (16 * KIB, 64 * KIB, MIB):
        yield _scattered(image, size, total)
    yield replace(_scattered(image, 16 * KIB, total), warm=True)


def _reads_of_many(run: Run, image: int) -> Iterator[Access]:
    one = _scattered(image, 64 * KIB, run.scale(200, 1) * MIB)
    yield one
    yield replace(one, warm=True)


def _writes(run: Run, image: int) -> Iterator[Access]:
    small = replace(_scattered(image, 4 * KIB, run.scale(8, 1) * MIB), writes=True)
    yield small
    yield replace(small, step=small.size)
    yield replace(small, step=small.size, flushed=True)
    yield replace(_scattered(image, MIB, run.scale(200, 1) * MIB), writes=True)


def _scattered(image: int, size: int, total: int) -> Access:
    # An odd number of steps shares no factor with the length of the image.
    return Access(size=size, total=total, step=(int(image * _GOLDEN) // size | 1) * size)


def _measured(run: Run, guests: Sequence[Guest], access: Access) -> Sequence[tuple[Guest, Paid]]:
    """Let the guests take turns, so that each has the same weather; give the median of each."""
    rounds = [[_pay(guest, access, run.folder) for guest in guests] for _ in range(run.scale(5, 1))]
    turns = [sorted(paid, key=lambda one: one.cost.wall) for paid in zip(*rounds, strict=True)]
    found = [paid[len(rounds) // 2] for paid in turns]
    run.costs += [paid.cost for paid in found]
    return list(zip(guests, found, strict=True))


def _pay(guest: Guest, access: Access, folder: Path) -> Paid:
    """Let the guest boot, with an overlay that nobody has used."""
    base = guest.base
    overlays = [folder / f"overlay-{number}.qcow2" for number in range(guest.number)]
    for overlay in overlays:
        words = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", guest.options)
        spend(*words, "-F", base.disk_format, "-b", base.path, overlay)
    if access.warm:
        spend("cat", base.path)
    else:
        forget(base.path)
    what = f"{access.name}, {guest.name}"
    cost = spend_at_once([(*access.words, overlay) for overlay in overlays], what=what)
    allocated = sum(_allocated(overlay) for overlay in overlays)
    for overlay in overlays:
        overlay.unlink()
    return Paid(cost=cost, allocated=allocated)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _tell_bases(run: Run, bases: Sequence[Base]) -> None:
    """Say what each base takes of the disk."""
    run.figures += [
        Figure(
            what=f"a base of {bases[0].path.stat().st_size // MIB} MiB, {base.name}",
            measured=_allocated(base.path) / MIB,
            unit="MiB",
            reference=_allocated(bases[0].path) / MIB,
            beside=bases[0].name,
        )
        for base in bases[1:]
    ]


def _tell(run: Run, access: Access, found: Sequence[tuple[Guest, Paid]]) -> None:
    """Set each guest beside the first one."""
    (first, reference), *others = found
    for guest, paid in others:
        rows = [("", "s", paid.cost.wall, reference.cost.wall)]
        if access.writes:
            rows.append((", overlay", "MiB", paid.allocated / MIB, reference.allocated / MIB))
        else:
            rows.append((", CPU", "s", paid.cost.cpu, reference.cost.cpu))
        run.figures += [
            Figure(
                what=f"{access.name}, {guest.name}{kind}",
                measured=measured,
                unit=unit,
                reference=beside,
                beside=first.name,
            )
            for kind, unit, measured, beside in rows
        ]
