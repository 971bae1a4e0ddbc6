"""An image that is not here, to READY: received, hashed, inspected, written, converted.

The reference is the longest of the parts that nothing leads past: receiving, hashing and writing
the same bytes, each alone. A conversion has one of its own. Of several ways to do one thing the
fastest counts: the first time all are tried, and from then on that one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import byhand
from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import Cost, Meter, watching
from benchmarks.figures import Figure, Goal, Run
from benchmarks.gallery import MIB, Gallery, Image
from benchmarks.load import AnswerError, connected, image_of, request
from benchmarks.residency import remember, resident
from benchmarks.tracing import counting
from benchmarks.webserver import serving

if TYPE_CHECKING:
    from collections.abc import Callable
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
    virtual_size: int

    @property
    def is_converted(self) -> bool:
        """Whether the base is another file than the image."""
        return self.disk_format != self.base_format and self.base_format == "raw"


@dataclass(slots=True, kw_only=True)
class Came:
    """One way of an image to READY: its cost, and the seconds of its conversion.

    ``converting`` is None where there was one that was over before anybody saw it.
    """

    cost: Cost
    converting: float | None
    resident: int


class Fastest:
    """Does things in all the ways that there are, and from then on in the fastest."""

    def __init__(self) -> None:
        self._chosen: dict[str, int] = {}

    def of(self, what: str, ways: Sequence[Callable[[], Cost]]) -> Sequence[Cost]:
        """Do it; give what each way cost that was tried now, the fastest first."""
        if what in self._chosen:
            return [ways[self._chosen[what]]()]
        costs = [way() for way in ways]
        fastest = min(costs, key=lambda cost: cost.wall)
        self._chosen[what] = costs.index(fastest)
        return sorted(costs, key=lambda cost: cost.wall)


def measure(run: Run) -> None:
    """Measure each case, in a daemon of its own."""
    gallery = Gallery(run.folder)
    meter, fastest = Meter(), Fastest()
    with serving(gallery.root, run.folder) as url:
        for case in _cases(run, gallery):
            data = f"{url}/v2/images/{case.image.image_id}/file"
            _case(run, case, url, partial(References.of, fastest, case, data, run.folder, meter))


def _cases(run: Run, gallery: Gallery) -> Sequence[Case]:
    size = run.scale(2048, 16) * MIB
    raw = gallery.raw(size)
    offered = gallery.offer(raw, "raw")
    plain = gallery.offer(gallery.qcow2(raw), "qcow2")
    small = gallery.offer(gallery.qcow2(raw, compressed=True), "qcow2")
    qcow2 = partial(Case, disk_format="qcow2", virtual_size=size)
    return [
        Case(name="raw", image=offered, disk_format="raw", base_format="raw", virtual_size=size),
        qcow2(name="qcow2, kept", image=plain, base_format="keep"),
        qcow2(name="qcow2 to raw", image=plain, base_format="raw"),
        qcow2(name="compressed qcow2 to raw", image=small, base_format="raw"),
    ]


def _case(run: Run, case: Case, url: str, references: Callable[[], References]) -> None:
    folder = run.folder / "agent"
    settings: dict[str, dict[str, object]] = {
        "glance": {"endpoint": url},
        "images": {"base_format": case.base_format},
        "scrub": {"interval": 0},
    }
    counted = Cost(what=f"{case.name}, under strace")
    found = Found()
    with daemon_on(folder, settings) as daemon:
        # Each round has both: what else the machine does meets them alike.
        for _ in range(run.scale(3, 1)):
            found.parts.append(references())
            found.came.append(asyncio.run(_bring(daemon, case, folder)))
        with counting(daemon.pid, run.folder, counted):
            asyncio.run(_bring(daemon, case, folder))
    hand = _by_hand(case, f"{url}/v2/images/{case.image.image_id}/file", run.folder)
    reference, came = found.middle()
    came.cost.processes, came.cost.fsyncs = counted.processes, counted.fsyncs
    run.costs += [came.cost, hand]
    run.costs += [replace(cost, what=f"{case.name}, {cost.what}") for cost in found.tried]
    _tell(run, case, came, reference, hand)
    _tell_cpu(run, case, came, reference)
    if case.is_converted:
        _tell_conversion(run, case, found.conversion())
        _tell_whole(run, case, came, reference)


def _by_hand(case: Case, data: str, folder: Path) -> Cost:
    is_raw = case.base_format == "raw"
    cost = byhand.cold(data, case.image.sha512, case.disk_format, folder, raw=is_raw)
    cost.what = f"{case.name}, by hand"
    return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The parts, each alone, and the conversion; ``tried`` are all that were done for them."""

    tried: Sequence[Cost]
    parts: Sequence[Cost]
    conversion: Cost

    @classmethod
    def of(cls, fastest: Fastest, case: Case, data: str, folder: Path, meter: Meter) -> References:
        """Receive, hash and write an image, and convert it where the agent does."""
        path = case.image.path
        found = [
            fastest.of("receive", byhand.receive(data, folder)),
            fastest.of("digest", byhand.digest(path, meter)),
            fastest.of("write", byhand.write(path, folder)),
        ]
        parts, conversion = [costs[0] for costs in found], Cost(what="")
        if case.is_converted:
            ways = byhand.convert(path, case.virtual_size, folder)
            found.append(fastest.of(case.name, ways))
            # The server is to send as fast as it can, as it does in the cases without these ways.
            remember(path)
            conversion = found[-1][0]
        tried = [cost for costs in found for cost in costs]
        return cls(tried=tried, parts=parts, conversion=conversion)

    @property
    def longest(self) -> Cost:
        """The part that takes longest."""
        return max(self.parts, key=lambda cost: cost.wall)

    @property
    def cpu(self) -> float:
        """Seconds of CPU of all of them."""
        return sum(cost.cpu for cost in (*self.parts, self.conversion))


@dataclass(slots=True)
class Found:
    """What the rounds of one case found."""

    parts: list[References] = field(default_factory=list)
    came: list[Came] = field(default_factory=list)

    @property
    def tried(self) -> Sequence[Cost]:
        """What was done in the first round, which has all the ways."""
        return self.parts[0].tried

    def middle(self) -> tuple[References, Came]:
        """Give the median of each, by the time that it took."""
        half = len(self.came) // 2
        return (
            sorted(self.parts, key=lambda one: one.longest.wall)[half],
            sorted(self.came, key=lambda one: one.cost.wall)[half],
        )

    def conversion(self) -> tuple[float | None, Cost]:
        """Give the median of the agent's conversions, in seconds, and that of the references.

        None where one of the agent's was never seen: those that are quick would be left out.
        """
        half = len(self.came) // 2
        best = sorted((one.conversion for one in self.parts), key=lambda c: c.wall)[half]
        seen = sorted(one.converting for one in self.came if one.converting is not None)
        return (seen[half] if len(seen) == len(self.came) else None), best


def _tell(run: Run, case: Case, came: Came, parts: References, hand: Cost) -> None:
    # What a conversion adds has its own reference.
    wall = None if came.converting is None else came.cost.wall - came.converting
    longest = parts.longest
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


def _tell_cpu(run: Run, case: Case, came: Came, parts: References) -> None:
    more = " + convert" if case.is_converted else ""
    run.figures.append(
        Figure(
            what=f"{case.name}, CPU",
            measured=came.cost.cpu,
            unit="s",
            reference=parts.cpu,
            beside=f"receive + hash + write{more}",
            goal=Goal(of="ratio", bound=1.3),
        )
    )


def _tell_conversion(run: Run, case: Case, found: tuple[float | None, Cost]) -> None:
    converting, best = found
    run.figures.append(
        Figure(
            what=f"{case.name}, conversion",
            measured=converting,
            unit="s",
            reference=best.wall,
            beside=best.what,
            goal=Goal(of="ratio", bound=1.1),
        )
    )


def _tell_whole(run: Run, case: Case, came: Came, parts: References) -> None:
    run.figures.append(
        Figure(
            what=f"{case.name}, to READY",
            measured=came.cost.wall,
            unit="s",
            reference=parts.longest.wall + parts.conversion.wall,
            beside=f"{parts.longest.what}, then {parts.conversion.what}",
        )
    )


async def _bring(daemon: Daemon, case: Case, folder: Path) -> Came:
    """Bring the image in, and evict it again."""
    path = f"/v1/images/{case.image.image_id}"
    async with connected(daemon.socket) as asking, connected(daemon.socket) as looking:
        with watching(daemon.pid, case.name) as cost:
            ready = asyncio.ensure_future(asking.ask(image_of(case.image.image_id)))
            begun = await _first(looking, path, ready) if case.is_converted else None
            await ready
            seen = None if begun is None else time.perf_counter() - begun
        left = sum(resident(base) for base in (folder / "state/bases").glob("*[!n]"))
        await asking.ask(request("DELETE", path))
    converting = seen if case.is_converted else 0.0
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
