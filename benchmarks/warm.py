"""A disk of a base that is here, from a daemon with many disks and bases.

The reference is what no way around leads past: a clone of the same template, and its fsync, by
one thread of Python in a folder of the same file system.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import byhand
from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import Cost, watching
from benchmarks.figures import Figure, Goal, Run, middle
from benchmarks.fleet import Fleet, make_fleet
from benchmarks.load import Times, disk_of, storm
from benchmarks.tracing import counting
from cacheagent.backends.store import files
from cacheagent.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CLIENTS = 32
ROUNDS = 3


def measure(run: Run) -> None:
    """Measure one at a time, many at once, and what each of them costs."""
    folder = run.folder / "agent"
    images = make_fleet(folder, Fleet.of(run))
    with daemon_on(folder) as daemon:
        # A template of each base is made by the first of its disks.
        _storm(daemon, images, len(images), 1)
        template = next((folder / "state/templates").iterdir())
        bare = Bare(template, run.folder / "bare")
        _one_at_a_time(run, daemon, images, bare)
        _at_once(run, daemon, images, bare)
        _by_library(run, daemon, images)
        _counted(run, daemon, images)
    _by_hand(run, template, folder)


class Bare:
    """Clones of a template, each with its fsync, and nothing else."""

    def __init__(self, template: Path, folder: Path) -> None:
        self._template, self._folder = template, folder
        folder.mkdir()

    def one_by_one(self, number: int) -> Times:
        """Make so many, one after the other."""
        begun = time.perf_counter()
        return Times([self._clone() for _ in range(number)], time.perf_counter() - begun)

    def at_once(self, number: int) -> Times:
        """Make so many by as many threads as there are clients."""
        with ThreadPoolExecutor(CLIENTS) as threads:
            begun = time.perf_counter()
            each = list(threads.map(lambda _: self._clone(), range(number)))
            return Times(each, time.perf_counter() - begun)

    def _clone(self) -> float:
        target = self._folder / str(uuid.uuid4())
        begun = time.perf_counter()
        target.touch(exist_ok=False)
        files.clone(self._template, target)
        files.sync_file(target)
        return time.perf_counter() - begun


def _requests(images: Sequence[str], number: int) -> Sequence[bytes]:
    return [disk_of(image) for image in itertools.islice(itertools.cycle(images), number)]


def _storm(daemon: Daemon, images: Sequence[str], number: int, clients: int) -> Times:
    return asyncio.run(storm(daemon.socket, _requests(images, number), clients))


def _one_at_a_time(run: Run, daemon: Daemon, images: Sequence[str], bare: Bare) -> None:
    number = run.scale(1000, 20)
    before = bare.one_by_one(number // 2)
    with watching(daemon.pid, "one at a time, for each disk") as cost:
        disks = _storm(daemon, images, number, 1)
    after = bare.one_by_one(number // 2)
    plain = Times([*before.each, *after.each], before.wall + after.wall)
    run.costs.append(_for_each(cost, number))
    name = "clone + fsync"
    run.figures += [
        Figure(
            what="one at a time, median",
            measured=disks.median,
            unit="ms",
            reference=plain.median,
            beside=name,
            goal=Goal(bound=2),
        ),
        Figure(
            what="one at a time, 99 of 100",
            measured=disks.p99,
            unit="ms",
            reference=plain.p99,
            beside=name,
            goal=Goal(bound=8),
        ),
    ]


def _at_once(run: Run, daemon: Daemon, images: Sequence[str], bare: Bare) -> None:
    number = run.scale(2000, 64)
    rates, plain = [], []
    with watching(daemon.pid, f"{CLIENTS} at once, for each disk") as cost:
        for _ in range(ROUNDS):
            rates.append(_storm(daemon, images, number, CLIENTS).rate)
            plain.append(bare.at_once(number).rate)
    run.costs.append(_for_each(cost, number * ROUNDS))
    run.figures.append(
        Figure(
            what=f"by {CLIENTS} clients",
            measured=middle(rates),
            unit="/s",
            reference=middle(plain),
            beside=f"clone + fsync by {CLIENTS} threads",
            goal=Goal(kind="at least", bound=1000),
        )
    )


def _for_each(cost: Cost, number: int) -> Cost:
    cost.wall /= number
    cost.cpu /= number
    cost.written = None if cost.written is None else cost.written // number
    return cost


def _by_library(run: Run, daemon: Daemon, images: Sequence[str]) -> None:
    """Ask by the client library, whose own work is on the same cores."""
    number = run.scale(1000, 20)
    for clients in (1, CLIENTS):
        times = asyncio.run(_asked(daemon, images, number, clients))
        what = f"by the client library, {clients} at once"
        run.figures.append(Figure(what=f"{what}, median", measured=times.median, unit="ms"))
        run.figures.append(Figure(what=what, measured=times.rate, unit="/s"))


async def _asked(daemon: Daemon, images: Sequence[str], number: int, clients: int) -> Times:
    left, each = iter(list(itertools.islice(itertools.cycle(images), number))), list[float]()
    async with AsyncClient(daemon.socket) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(_ask(client, left, each) for _ in range(clients)))
        return Times(each, time.perf_counter() - begun)


async def _ask(client: AsyncClient, left: Iterator[str], each: list[float]) -> None:
    for image in left:
        begun = time.perf_counter()
        await client.create_disk(str(uuid.uuid4()), "root", image_id=image)
        each.append(time.perf_counter() - begun)


def _counted(run: Run, daemon: Daemon, images: Sequence[str]) -> None:
    number = run.scale(320, 32)
    for clients in (1, CLIENTS):
        cost = Cost(what=f"{clients} at once, under strace, {number} disks")
        begun = time.perf_counter()
        with counting(daemon.pid, run.folder, cost):
            _storm(daemon, images, number, clients)
        cost.wall = time.perf_counter() - begun
        run.costs.append(cost)
        if clients == 1:
            run.figures.append(
                Figure(
                    what="processes started",
                    measured=cost.processes,
                    unit="",
                    reference=2 * number,
                    beside="by hand",
                    goal=Goal(bound=0),
                )
            )
        each = None if cost.fsyncs is None else cost.fsyncs / number
        what = f"fsyncs for each disk, {clients} at once"
        run.figures.append(
            Figure(what=what, measured=each, unit="", reference=1, beside="clone + fsync")
        )


def _by_hand(run: Run, template: Path, folder: Path) -> None:
    """Set the median beside what a user would type."""
    base = next((folder / "state/bases").glob("*.raw"))
    number = run.scale(30, 3)
    ours = run.figures[0].measured
    ways: dict[str, Callable[[], Cost]] = {
        "qemu-img create, sync": partial(byhand.warm, base, "raw", run.folder / "overlay"),
        "cp --reflink=auto, sync": partial(byhand.copy, template, run.folder / "copy"),
        "dd conv=fsync": partial(byhand.dump, template, run.folder / "dumped"),
    }
    for name, way in ways.items():
        costs = [way() for _ in range(number)]
        wall = middle(cost.wall for cost in costs) * 1e3
        run.figures.append(
            Figure(
                what="one at a time, median", measured=ours, unit="ms", reference=wall, beside=name
            )
        )
        run.costs.append(sorted(costs, key=lambda cost: cost.wall)[number // 2])
