"""What a pass of eviction costs on a host with many disks.

    .venv/bin/python benchmarks/prune_pass.py --disks 10000 --bases 500

The reference is a plain loop of Python that lists the same folders, and opens and reads the same
headers. Beside it stands what asking ``qemu-img info`` of each disk would take.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from fleet import BLOCK, Fleet, fill, parts_in
from report import Meter, Row, show

from cacheagent import wiring
from cacheagent.loops.pruner import Pruner
from cacheagent.model import Caller

SAMPLE = 100
"""Disks that qemu-img is really asked about; the rest is multiplied."""

HEADER = 4096


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--disks", type=int, default=10_000)
    parser.add_argument("--bases", type=int, default=500)
    parser.add_argument("--evict", type=int, default=50, help="bases without a disk, to evict")
    parser.add_argument("--folder", type=Path, help="where to make them (default: a temporary one)")
    asked = parser.parse_args()
    fleet = Fleet(disks=asked.disks, bases=asked.bases, unused=asked.evict)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=asked.folder) as folder:
        meter, reference = asyncio.run(_measured(Path(folder), fleet))
        sizes = {"disks": fleet.disks, "bases": fleet.bases, "evicted": fleet.unused}
        show(meter.rows, reference, sizes, Path(folder))


async def _measured(folder: Path, fleet: Fleet) -> tuple[Meter, Row]:
    meter = Meter()
    async with parts_in(folder) as parts:
        await fill(parts, fleet)
        instances = parts.store.layout.instances_dir
        with meter.measuring("plain loop over all headers") as reference:
            _read_all(instances)
        meter.rows.append(_qemu_img(instances, fleet.disks))
        agent = wiring.wire(parts)
        operator, nobody = agent.services.operator, Caller()
        with meter.measuring("first plan: headers are read"):
            await operator.prune(nobody, dry_run=True, free_bytes=None)
        with meter.measuring("second plan: headers are known"):
            await operator.prune(nobody, dry_run=True, free_bytes=None)
        pruner = next(loop for loop in agent.loops if isinstance(loop, Pruner))
        with meter.measuring("pass that finds nothing to do"):
            await pruner.run_once("interval")
        with meter.measuring(f"pass that evicts {fleet.unused} bases"):
            done = await operator.prune(nobody, dry_run=False, free_bytes=fleet.unused * BLOCK)
        if len(done.evicted) != fleet.unused or done.skipped:
            raise SystemExit(f"{len(done.evicted)} bases went, not {fleet.unused}")
        await agent.bases.stop()
        await agent.background.stop()
    return meter, reference


def _read_all(instances: Path) -> None:
    """List, open and read, as plainly as Python can."""
    with os.scandir(instances) as folders:
        for folder in folders:
            with os.scandir(folder) as files:
                for file in files:
                    fd = os.open(file, os.O_RDONLY)
                    os.pread(fd, HEADER, 0)
                    os.close(fd)


def _qemu_img(instances: Path, disks: int) -> Row:
    """Ask qemu-img about some of the disks, and give what all of them would take."""
    some = [path for _, path in zip(range(SAMPLE), instances.glob("*/*.qcow2"), strict=False)]
    before, wall = _children_cpu(), time.perf_counter()
    for path in some:
        command = ["qemu-img", "info", "--force-share", "--output=json", "-f", "qcow2", str(path)]
        subprocess.run(command, check=True, capture_output=True)
    times = disks / len(some)
    return Row(
        what=f"qemu-img info of each (from {len(some)} of them)",
        cpu=(_children_cpu() - before) * times,
        wall=(time.perf_counter() - wall) * times,
        processes=disks,
    )


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
