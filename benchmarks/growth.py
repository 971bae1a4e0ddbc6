"""How costs grow with the number of disks and of bases.

The exponent is the slope of a line through the logarithms: 1 where twice as much takes twice as
long, 0 where it takes no longer.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import Meter
from benchmarks.drawing import Line, Panel, draw
from benchmarks.figures import Figure, Goal, Run, number
from benchmarks.fleet import Fleet, make_fleet, parts_in
from benchmarks.load import disk_of, request, storm
from benchmarks.report import DRAWING
from cacheagent import wiring
from cacheagent.loops.pruner import Pruner
from cacheagent.loops.reconciler import Reconciler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WARM = "warm request"
FLAT = 0.05
"""An exponent that is none: a quarter more where there is a hundred times as much."""

_TIMES = 5
"""How often each is measured; the least counts, since all else that the machine does adds."""


def measure(run: Run) -> None:
    """Measure with more and more disks, and with more and more bases."""
    disks = [100, 1000, 10_000] if not run.quick else [10, 20]
    bases = [10, 100, 500] if not run.quick else [2, 4]
    meter = Meter()
    sizes = [(disks[-1], each) for each in bases] + [(each, bases[-1]) for each in disks[:-1]]
    found = {size: _measured(run, size, meter) for size in sizes}
    by_disks = {each: found[each, bases[-1]] for each in disks}
    by_bases = {each: found[disks[-1], each] for each in bases}
    _tell(run, "disks", by_disks)
    _tell(run, "bases", by_bases)
    panels = [
        _panel(f"disks, with {bases[-1]} bases", by_disks),
        _panel(f"bases, with {disks[-1]} disks", by_bases),
    ]
    (run.drawings / DRAWING).write_text(draw(panels, "seconds"))


def _measured(run: Run, size: tuple[int, int], meter: Meter) -> Mapping[str, float]:
    """Give the seconds of everything for one size."""
    folder = run.folder / f"{size[0]}-{size[1]}"
    images = make_fleet(folder, Fleet(disks=size[0], bases=size[1], settled=not run.quick))
    inside = asyncio.run(_loops(folder, meter))
    with daemon_on(folder) as daemon:
        outside = asyncio.run(_requests(run, daemon, images))
        return {"start": daemon.start.wall, **inside, **outside}


async def _loops(folder: Path, meter: Meter) -> Mapping[str, float]:
    async with parts_in(folder) as parts:
        agent = wiring.wire(parts)
        pruner = next(loop for loop in agent.loops if isinstance(loop, Pruner))
        reconciler = next(loop for loop in agent.loops if isinstance(loop, Reconciler))
        seconds: dict[str, list[float]] = {"prune pass": [], "reconcile": []}
        for _ in range(_TIMES):
            with meter.measuring("prune pass") as cost:
                await pruner.run_once("interval")
            seconds["prune pass"].append(cost.wall)
            with meter.measuring("reconcile") as cost:
                await reconciler.run_once(parts.now())
            seconds["reconcile"].append(cost.wall)
        await agent.bases.stop()
        await agent.background.stop()
    return {name: min(values) for name, values in seconds.items()}


async def _requests(run: Run, daemon: Daemon, images: Sequence[str]) -> Mapping[str, float]:
    # A template of each base is made by the first of its disks.
    some = images[:10]
    await storm(daemon.socket, [disk_of(image) for image in some], 1)
    medians = []
    for _ in range(_TIMES):
        asked = [disk_of(some[each % len(some)]) for each in range(run.scale(200, 10))]
        warm = await storm(daemon.socket, asked, 1)
        medians.append(warm.median / 1e3)
    found = {WARM: min(medians)}
    for path in ("/v1/images", "/v1/instances", "/metrics"):
        times = await storm(daemon.socket, [request("GET", path)] * _TIMES, 1)
        found[f"GET {path}"] = min(times.each)
    return found


def _tell(run: Run, of: str, by_size: Mapping[int, Mapping[str, float]]) -> None:
    bound = steepest({size: size * math.log(size) for size in by_size})
    for name in by_size[min(by_size)]:
        seconds = {size: found[name] for size, found in by_size.items()}
        each = ", ".join(number(value * 1e3) for _, value in sorted(seconds.items()))
        sizes = ", ".join(map(str, sorted(seconds)))
        may_grow = name != WARM
        run.figures.append(
            Figure(
                what=f"{name}: {each} ms with {sizes} {of}; exponent",
                measured=steepest(seconds),
                unit="",
                reference=bound if may_grow else None,
                beside="n log n" if may_grow else "",
                goal=Goal(of="ratio", bound=1) if may_grow else Goal(bound=FLAT),
            )
        )


def steepest(seconds: Mapping[int, float]) -> float:
    """Give the exponent over all sizes, or over the last two where that is larger."""
    last = sorted(seconds)[-2:]
    return max(exponent(seconds), exponent({size: seconds[size] for size in last}))


def exponent(seconds: Mapping[int, float]) -> float:
    """Give the slope of the least squares through the logarithms of sizes and seconds."""
    points = [(math.log(size), math.log(value)) for size, value in seconds.items()]
    x = sum(point[0] for point in points) / len(points)
    y = sum(point[1] for point in points) / len(points)
    above = sum((point[0] - x) * (point[1] - y) for point in points)
    return above / sum((point[0] - x) ** 2 for point in points)


def _panel(title: str, by_size: Mapping[int, Mapping[str, float]]) -> Panel:
    names = next(iter(by_size.values()))
    lines = [
        Line(name=name, points=sorted((size, found[name]) for size, found in by_size.items()))
        for name in names
    ]
    return Panel(title=title, lines=lines)
