"""What a pass of eviction costs on a host with many disks.

The reference is a plain loop of Python that lists the same folders, and opens and reads the same
headers. Beside it stands what asking ``qemu-img info`` of each disk would take.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.costs import Cost, Meter, spend
from benchmarks.figures import Figure, Goal, Run
from benchmarks.fleet import BLOCK, Fleet, fill, parts_in
from cacheagent import wiring
from cacheagent.loops.pruner import Pruner
from cacheagent.model import Caller

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.api.services import OperatorService

SAMPLE = 100
"""Disks that qemu-img is really asked about; the rest is multiplied."""

HEADER = 4096


def measure(run: Run) -> None:
    """Plan, pass over nothing to do, and evict."""
    fleet = Fleet.of(run, unused=run.scale(50, 2))
    reference, asked, *passes = asyncio.run(_measured(run.folder, fleet))
    run.costs += [reference, asked, *passes]
    for cost in passes:
        run.figures += [
            Figure(
                what=f"{cost.what}, CPU",
                measured=cost.cpu,
                unit="s",
                reference=reference.cpu,
                beside=reference.what,
                goal=Goal(bound=1),
            ),
            Figure(
                what=f"{cost.what}, processes",
                measured=cost.processes,
                unit="",
                reference=asked.processes,
                beside=asked.what,
                goal=Goal(bound=0),
            ),
        ]


async def _measured(folder: Path, fleet: Fleet) -> list[Cost]:
    meter = Meter()
    async with parts_in(folder) as parts:
        await fill(parts, fleet)
        instances = parts.store.layout.instances_dir
        with meter.measuring("plain loop over all headers") as reference:
            _read_all(instances)
        asked = _qemu_img(instances, fleet.disks)
        agent = wiring.wire(parts)
        pruner = next(loop for loop in agent.loops if isinstance(loop, Pruner))
        operator = agent.services.operator
        with meter.measuring("first plan: headers are read") as first:
            await operator.prune(Caller(), dry_run=True, free_bytes=None)
        with meter.measuring("second plan: headers are known") as second:
            await operator.prune(Caller(), dry_run=True, free_bytes=None)
        with meter.measuring("pass that finds nothing to do") as nothing:
            await pruner.run_once("interval")
        with meter.measuring(f"pass that evicts {fleet.unused} bases") as evicting:
            await _evict(operator, fleet.unused)
        await agent.bases.stop()
        await agent.background.stop()
    return [reference, asked, first, second, nothing, evicting]


async def _evict(operator: OperatorService, bases: int) -> None:
    done = await operator.prune(Caller(), dry_run=False, free_bytes=bases * BLOCK)
    if len(done.evicted) != bases or done.skipped:
        raise RuntimeError(f"{len(done.evicted)} bases went, not {bases}")


def _read_all(instances: Path) -> None:
    """List, open and read, as plainly as Python can."""
    with os.scandir(instances) as folders:
        for folder in folders:
            with os.scandir(folder) as files:
                for file in files:
                    fd = os.open(file, os.O_RDONLY)
                    os.pread(fd, HEADER, 0)
                    os.close(fd)


def _qemu_img(instances: Path, disks: int) -> Cost:
    """Ask qemu-img about some of the disks, and give what all of them would take."""
    some = [path for _, path in zip(range(SAMPLE), instances.glob("*/*.qcow2"), strict=False)]
    total = Cost(what=f"qemu-img info of each (from {len(some)} of them)")
    for path in some:
        words = ("qemu-img", "info", "--force-share", "--output=json", "-f", "qcow2")
        total = total.plus(spend(*words, path))
    times = disks / len(some)
    return replace(
        total, wall=total.wall * times, cpu=total.cpu * times, written=None, processes=disks
    )
