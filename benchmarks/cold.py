"""An image that is not here, to READY: received, hashed, inspected, written, converted.

The reference is the longest of the parts that nothing leads past: receiving, hashing and writing
the same bytes, each alone. For each the fastest of several ways counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from benchmarks import byhand
from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import Cost, Meter, watching
from benchmarks.figures import Figure, Goal, Run
from benchmarks.gallery import MIB, Gallery, Image
from benchmarks.load import AnswerError, connected, image_of, request
from benchmarks.residency import resident
from benchmarks.tracing import counting
from benchmarks.webserver import serving

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.load import Connection

_POLL = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image, and what is to become of it."""

    name: str
    image: Image
    disk_format: str
    base_format: str

    @property
    def is_converted(self) -> bool:
        """Whether the base is another file than the image."""
        return self.disk_format != self.base_format and self.base_format == "raw"


@dataclass(slots=True, kw_only=True)
class Came:
    """One way of an image to READY: its cost, and the seconds of its conversion."""

    cost: Cost
    converting: float
    resident: int


def measure(run: Run) -> None:
    """Measure each case, in a daemon of its own."""
    gallery = Gallery(run.folder)
    meter = Meter()
    with serving(gallery.root, run.folder) as url:
        for case in _cases(run, gallery):
            _case(run, case, url, meter)


def _cases(run: Run, gallery: Gallery) -> Sequence[Case]:
    raw = gallery.raw(run.scale(2048, 16) * MIB)
    plain = gallery.offer(gallery.qcow2(raw), "qcow2")
    small = gallery.offer(gallery.qcow2(raw, compressed=True), "qcow2")
    return [
        Case(name="raw", image=gallery.offer(raw, "raw"), disk_format="raw", base_format="raw"),
        Case(name="qcow2, kept", image=plain, disk_format="qcow2", base_format="keep"),
        Case(name="qcow2 to raw", image=plain, disk_format="qcow2", base_format="raw"),
        Case(name="compressed qcow2 to raw", image=small, disk_format="qcow2", base_format="raw"),
    ]


def _case(run: Run, case: Case, url: str, meter: Meter) -> None:
    folder = run.folder / "agent"
    settings: dict[str, dict[str, object]] = {
        "glance": {"endpoint": url},
        "images": {"base_format": case.base_format},
        "scrub": {"interval": 0},
    }
    data = f"{url}/v2/images/{case.image.image_id}/file"
    times = run.scale(3, 1)
    counted = Cost(what=f"{case.name}, under strace")
    found = Found()
    with daemon_on(folder, settings) as daemon:
        # Each round has it all: what else the machine does meets all alike.
        for _ in range(times):
            found.parts.append(References.of(data, case.image, run.folder, meter))
            found.came.append(asyncio.run(_bring(daemon, case, folder)))
            found.by_hand.append(_by_hand(case, data, run.folder))
        with counting(daemon.pid, run.folder, counted):
            asyncio.run(_bring(daemon, case, folder))
    reference, middle_one, hand = found.middle()
    middle_one.cost.processes, middle_one.cost.fsyncs = counted.processes, counted.fsyncs
    run.costs += [middle_one.cost, hand]
    run.costs += [replace(cost, what=f"{case.name}, {cost.what}") for cost in reference.all]
    best = byhand.convert(case.image.path, run.folder) if case.is_converted else Cost(what="")
    _tell(run, case, middle_one, reference, hand)
    _tell_cpu(run, case, middle_one, reference, best)
    if case.is_converted:
        _tell_conversion(run, case, middle_one, reference, best)


def _by_hand(case: Case, data: str, folder: Path) -> Cost:
    is_raw = case.base_format == "raw"
    cost = byhand.cold(data, case.image.sha512, case.disk_format, folder, raw=is_raw)
    cost.what = f"{case.name}, by hand"
    return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The parts, each alone; of the ways to do one the fastest counts."""

    all: Sequence[Cost]
    parts: Sequence[Cost]

    @classmethod
    def of(cls, url: str, image: Image, folder: Path, meter: Meter) -> References:
        """Receive, hash and write an image."""
        pairs = [
            byhand.receive(url, folder),
            byhand.digest(image.path, meter),
            byhand.write(image.path, folder),
        ]
        fastest = [min(pair, key=lambda cost: cost.wall) for pair in pairs]
        return cls(all=[cost for pair in pairs for cost in pair], parts=fastest)

    @property
    def longest(self) -> Cost:
        """The part that takes longest."""
        return max(self.parts, key=lambda cost: cost.wall)

    @property
    def cpu(self) -> float:
        """Seconds of CPU of all three."""
        return sum(cost.cpu for cost in self.parts)


@dataclass(slots=True)
class Found:
    """What the rounds of one case found."""

    parts: list[References] = field(default_factory=list)
    came: list[Came] = field(default_factory=list)
    by_hand: list[Cost] = field(default_factory=list)

    def middle(self) -> tuple[References, Came, Cost]:
        """Give the median of each, by the time that it took."""
        half = len(self.came) // 2
        return (
            sorted(self.parts, key=lambda one: one.longest.wall)[half],
            sorted(self.came, key=lambda one: one.cost.wall)[half],
            sorted(self.by_hand, key=lambda one: one.wall)[half],
        )


def _tell(run: Run, case: Case, came: Came, parts: References, hand: Cost) -> None:
    # What a conversion adds has its own reference.
    wall, longest = came.cost.wall - came.converting, parts.longest
    until = f"{case.name}, until it is converted" if case.is_converted else f"{case.name}, to READY"
    run.figures += [
        Figure(
            what=until,
            measured=wall,
            unit="s",
            reference=longest.wall,
            beside=longest.what,
            goal=Goal(of="ratio", bound=1.15),
        ),
        Figure(
            what=f"{case.name}, to READY",
            measured=came.cost.wall,
            unit="s",
            reference=hand.wall,
            beside="by hand",
        ),
        Figure(
            what=f"{case.name}, rate",
            measured=case.image.size / MIB / came.cost.wall,
            unit="MiB/s",
            reference=case.image.size / MIB / hand.wall,
            beside="by hand",
        ),
        Figure(
            what=f"{case.name}, left in the page cache",
            measured=came.resident / MIB,
            unit="MiB",
            reference=case.image.size / MIB,
            beside="the image",
            goal=Goal(of="ratio", bound=0.05),
        ),
    ]


def _tell_cpu(run: Run, case: Case, came: Came, parts: References, best: Cost) -> None:
    more = " + convert" if case.is_converted else ""
    run.figures.append(
        Figure(
            what=f"{case.name}, CPU",
            measured=came.cost.cpu,
            unit="s",
            reference=parts.cpu + best.cpu,
            beside=f"receive + hash + write{more}",
            goal=Goal(of="ratio", bound=1.3),
        )
    )


def _tell_conversion(run: Run, case: Case, came: Came, parts: References, best: Cost) -> None:
    run.costs.append(replace(best, what=f"{case.name}, {best.what}"))
    run.figures += [
        Figure(
            what=f"{case.name}, conversion",
            measured=came.converting,
            unit="s",
            reference=best.wall,
            beside=best.what,
            goal=Goal(of="ratio", bound=1.1),
        ),
        Figure(
            what=f"{case.name}, to READY",
            measured=came.cost.wall,
            unit="s",
            reference=parts.longest.wall + best.wall,
            beside=f"{parts.longest.what}, then {best.what}",
        ),
    ]


async def _bring(daemon: Daemon, case: Case, folder: Path) -> Came:
    """Bring the image in, and evict it again."""
    path = f"/v1/images/{case.image.image_id}"
    async with connected(daemon.socket) as asking, connected(daemon.socket) as looking:
        with watching(daemon.pid, case.name) as cost:
            ready = asyncio.ensure_future(asking.ask(image_of(case.image.image_id)))
            begun = await _first(looking, path, ready) if case.is_converted else None
            await ready
            converting = 0.0 if begun is None else time.perf_counter() - begun
        left = sum(resident(base) for base in (folder / "state/bases").glob("*[!n]"))
        await asking.ask(request("DELETE", path))
    return Came(cost=cost, converting=converting, resident=left)


async def _first(looking: Connection, path: str, ready: asyncio.Future[bytes]) -> float | None:
    """Wait until the image is being converted, and give the time; None where nobody saw it."""
    while not ready.done():
        try:
            if b'"converting"' in await looking.ask(request("GET", path)):
                return time.perf_counter()
        except AnswerError:
            # It is not even known yet.
            pass
        await asyncio.wait({ready}, timeout=_POLL)
    return None
