"""Many images at once, warm requests beside them, and a crowd that waits for one image."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import time
from typing import TYPE_CHECKING

from benchmarks.agent import Daemon, daemon_on
from benchmarks.costs import memory_of, watching
from benchmarks.figures import Figure, Goal, Run
from benchmarks.gallery import MIB, Gallery, Image
from benchmarks.load import Times, ask, connected, disk_of, image_of, request
from benchmarks.webserver import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGES = 32
TOGETHER = 8
"""Downloads that a bound on the bandwidth is shared by."""

_PAUSE = 0.005
"""Seconds between two warm requests: a scheduler asks now and then, and keeps no core busy."""

_POLL = 0.02
_PATIENCE = 50.0


def measure(run: Run) -> None:
    """Measure all at once, a bound that is shared, and the crowd."""
    gallery = Gallery(run.folder)
    size = run.scale(64, 1) * MIB
    images = [gallery.offer(gallery.raw(size), "raw") for _ in range(run.scale(IMAGES, TOGETHER))]
    one = gallery.offer(gallery.raw(size * len(images)), "raw")
    warm = gallery.offer(gallery.raw(MIB), "raw")
    with serving(gallery.root, run.folder) as url:
        _all_at_once(run, url, images, one, warm)
        _shared_bandwidth(run, url, images[:TOGETHER])
        _crowd(run, url, images[0])


def _all_at_once(run: Run, url: str, images: Sequence[Image], one: Image, warm: Image) -> None:
    with daemon_on(run.folder / "all", {"glance": {"endpoint": url}}) as daemon:
        asyncio.run(_times(daemon, [warm]))
        single = asyncio.run(_times(daemon, [one]))
        quiet = asyncio.run(_warm_for(daemon, warm, 1.0))
        with watching(daemon.pid, f"{len(images)} images at once") as cost:
            took, beside = asyncio.run(_with_warm(daemon, images, warm))
    run.costs.append(cost)
    total = sum(image.size for image in images) / MIB
    run.figures += [
        Figure(
            what=f"{len(images)} images at once, rate",
            measured=total / max(took),
            unit="MiB/s",
            reference=one.size / MIB / single[0],
            beside="one image as large as all",
        ),
        Figure(
            what="warm request beside them, median",
            measured=beside.median,
            unit="ms",
            reference=quiet.median,
            beside="without them",
            goal=Goal(bound=5),
        ),
        Figure(
            what="warm request beside them, 99 of 100",
            measured=beside.p99,
            unit="ms",
            reference=quiet.p99,
            beside="without them",
        ),
    ]


async def _times(daemon: Daemon, images: Sequence[Image]) -> Sequence[float]:
    """Ask for all images at once, and give the seconds after which each was ready."""
    begun = time.perf_counter()

    async def one(image: Image) -> float:
        await ask(daemon.socket, image_of(image.image_id))
        return time.perf_counter() - begun

    return await asyncio.gather(*(one(image) for image in images))


async def _warm_for(daemon: Daemon, image: Image, seconds: float) -> Times:
    return await _warm_while(daemon, image, asyncio.create_task(asyncio.sleep(seconds)))


async def _warm_while(daemon: Daemon, image: Image, other: asyncio.Task[None]) -> Times:
    """Ask for disks, one at a time, until the other task has ended."""
    each, begun = list[float](), time.perf_counter()
    async with connected(daemon.socket) as connection:
        while not other.done() or not each:
            asked, sent = disk_of(image.image_id), time.perf_counter()
            await connection.ask(asked)
            each.append(time.perf_counter() - sent)
            await asyncio.sleep(_PAUSE)
    await other
    return Times(each, time.perf_counter() - begun)


async def _with_warm(
    daemon: Daemon, images: Sequence[Image], warm: Image
) -> tuple[Sequence[float], Times]:
    took: list[float] = []

    async def bring() -> None:
        took.extend(await _times(daemon, images))

    beside = await _warm_while(daemon, warm, asyncio.create_task(bring()))
    return took, beside


def _shared_bandwidth(run: Run, url: str, images: Sequence[Image]) -> None:
    limit = run.scale(200, 50)
    glance = {"endpoint": url, "concurrency": TOGETHER, "bandwidth_limit": f"{limit}MiB"}
    with daemon_on(run.folder / "shared", {"glance": glance}) as daemon:
        took = asyncio.run(_times(daemon, images))
    total = sum(image.size for image in images) / MIB
    run.figures += [
        Figure(
            what=f"{TOGETHER} images under bandwidth_limit, rate",
            measured=total / max(took),
            unit="MiB/s",
            reference=limit,
            beside="the limit",
        ),
        Figure(
            what=f"{TOGETHER} equal images under bandwidth_limit, the last one",
            measured=max(took),
            unit="s",
            reference=min(took),
            beside="the first one",
        ),
    ]


def _crowd(run: Run, url: str, image: Image) -> None:
    """Let many wait for one image that comes slowly."""
    number = run.scale(1000, 50)
    glance = {"endpoint": url, "bandwidth_limit": image.size // 60}
    with _descriptors(2 * number), daemon_on(run.folder / "crowd", {"glance": glance}) as daemon:
        idle, waiting = asyncio.run(_gather(daemon, image, number))
    run.figures.append(
        Figure(
            what=f"memory of each of {number} who wait for one image",
            measured=waiting / number / 1024,
            unit="KiB",
            reference=idle / number / 1024,
            beside="a connection without a request",
            goal=Goal(bound=64),
        )
    )


async def _gather(daemon: Daemon, image: Image, number: int) -> tuple[int, int]:
    """Give the bytes that idle connections take, and those that as many waiters take."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(connected(daemon.socket))
        asking = [asyncio.ensure_future(first.ask(disk_of(image.image_id)))]
        await _reach(daemon, "download_waiters", 1)
        before = memory_of(daemon.pid)
        crowd = [await stack.enter_async_context(connected(daemon.socket)) for _ in range(number)]
        await _reach(daemon, "connections", number)
        idle = memory_of(daemon.pid) - before
        asking += [asyncio.ensure_future(one.ask(disk_of(image.image_id))) for one in crowd]
        await _reach(daemon, "download_waiters", number + 1)
        waiting = memory_of(daemon.pid) - before
    await asyncio.gather(*asking, return_exceptions=True)
    return idle, waiting


async def _reach(daemon: Daemon, name: str, value: int) -> None:
    """Wait until a metric is as large as that; it should be soon."""
    line = re.compile(rf"^cacheagent_{name} (\S+)$".encode(), re.MULTILINE)
    async with asyncio.timeout(_PATIENCE):
        while True:
            found = line.search(await ask(daemon.socket, request("GET", "/metrics")))
            if found is not None and float(found[1]) >= value:
                return
            await asyncio.sleep(_POLL)


@contextlib.contextmanager
def _descriptors(number: int) -> Iterator[None]:
    """Let this process, and the daemon that it starts, have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
