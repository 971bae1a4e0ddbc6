"""The memory of the daemon: with many disks, and while large images come."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import memory_of, watching
from benchmarks.figures import Figure, Goal, Run
from benchmarks.fleet import Fleet, make_fleet
from benchmarks.gallery import MIB, Gallery, Image
from benchmarks.load import ask, disk_of, image_of, request, storm
from benchmarks.webserver import serving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DOWNLOADS = 8
SECONDS = 60.0
"""How long the downloads are looked at."""

GOAL = Goal(bound=120)

_CLOUD = {
    "OS_AUTH_URL": "http://127.0.0.1:9/v3",
    "OS_USERNAME": "agent",
    "OS_PASSWORD": "none",
    "OS_PROJECT_NAME": "service",
    "OS_USER_DOMAIN_ID": "default",
    "OS_PROJECT_DOMAIN_ID": "default",
}
"""A Keystone that nobody asks: its libraries take their memory at the start."""


def measure(run: Run) -> None:
    """Look at the daemon at rest, after all that is asked of it, and while images come."""
    gallery = Gallery(run.folder)
    images = gallery.sparse(run.scale(_length(run.folder), 16) * MIB, run.scale(DOWNLOADS, 2))
    with serving(gallery.root, run.folder) as url:
        glance = {"endpoint": url, "concurrency": DOWNLOADS}
        with daemon_on(run.folder / "empty", {"glance": glance}) as daemon:
            nothing = memory_of(daemon.pid) / MIB
        fleet = Fleet.of(run)
        known = make_fleet(run.folder / "agent", fleet)
        with daemon_on(run.folder / "agent", {"glance": glance}) as daemon:
            _tell(run, f"with {fleet.disks} disks, ready", memory_of(daemon.pid), nothing)
            with watching(daemon.pid, "all that is asked of it") as cost:
                asyncio.run(_ask_for_all(daemon, known, run.scale(1000, 20)))
            run.costs.append(cost)
            _tell(run, f"with {fleet.disks} disks, at most", cost.peak, nothing)
            _downloads(run, daemon, images, nothing)
        with daemon_on(
            run.folder / "agent", {"glance": {"auth": "keystone"}}, environment=_CLOUD
        ) as daemon:
            what = f"with {fleet.disks} disks and a Keystone, ready"
            _tell(run, what, memory_of(daemon.pid), nothing)


def _length(folder: Path) -> int:
    """Give the MiB of an image: 10 GiB, or what can be set aside for as many as come at once."""
    return min(10 << 10, shutil.disk_usage(folder).free * 9 // 10 // DOWNLOADS // MIB)


async def _ask_for_all(daemon: Daemon, images: Sequence[str], number: int) -> None:
    """Make disks, list images and instances, look at the metrics, plan a pass, make one."""
    disks = [disk_of(images[each % len(images)]) for each in range(number)]
    await storm(daemon.socket, disks, 32)
    for path in ("/v1/images", "/v1/instances", "/v1/status", "/metrics"):
        await ask(daemon.socket, request("GET", path))
    for dry_run in (True, False):
        await ask(daemon.socket, request("POST", "/v1/prune", {"dry_run": dry_run}))


def _downloads(run: Run, daemon: Daemon, images: Sequence[Image], nothing: float) -> None:
    size = images[0].size / MIB
    what = f"{len(images)} downloads of {size:.0f} MiB"
    with watching(daemon.pid, what) as cost:
        asyncio.run(_bring(daemon, images))
    run.costs.append(cost)
    _tell(run, f"during {what}, at most", cost.peak, nothing)


async def _bring(daemon: Daemon, images: Sequence[Image]) -> None:
    """Bring all of them in at once, or as much as comes in some time: the rest is the same."""
    coming = [asyncio.ensure_future(ask(daemon.socket, image_of(each.image_id))) for each in images]
    done, left = await asyncio.wait(coming, timeout=SECONDS)
    for each in left:
        each.cancel()
    await asyncio.gather(*done)
    await asyncio.gather(*left, return_exceptions=True)


def _tell(run: Run, what: str, measured: int | None, nothing: float) -> None:
    run.figures.append(
        Figure(
            what=what,
            measured=None if measured is None else measured / MIB,
            unit="MiB",
            reference=nothing,
            beside="without a disk",
            goal=GOAL,
        )
    )
