"""Real backends in a folder of the test, wired as the daemon wires them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from cacheagent.backends.catalog import Catalog
from cacheagent.backends.glance import Glance, GlanceSettings
from cacheagent.backends.identity import NoIdentity
from cacheagent.backends.qemuimg import QemuImg, QemuImgSettings
from cacheagent.backends.store import Store
from cacheagent.config import Config, parse_config
from cacheagent.errors import DiskNotFoundError
from cacheagent.metrics import Metrics
from cacheagent.policy.layout import Layout
from cacheagent.service.access import Access
from cacheagent.service.background import Background
from cacheagent.service.bases import Bases
from cacheagent.service.creation import Creation
from cacheagent.service.despite import despite_full
from cacheagent.service.disks import Disks
from cacheagent.service.events import Events
from cacheagent.service.eviction import Evictions
from cacheagent.service.images import Images
from cacheagent.service.ingest import Ingest
from cacheagent.service.making import Making
from cacheagent.service.parts import Parts, bounds
from cacheagent.service.reconcile import Reconcile
from cacheagent.service.repair import Repair
from cacheagent.service.room import Room
from cacheagent.service.use import Use
from cacheagent.sync.backoff import Backoff
from tests.fakes.sandboxes import RLIMITS

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cacheagent.model import Base, DiskKey, DiskState, User

T = TypeVar("T")


async def gathered(rows: AsyncIterable[T]) -> list[T]:
    """Give all rows of a list that comes one by one."""
    return [row async for row in rows]


class Clock:
    """Monotonic seconds, and a time of day, that pass when the test says so."""

    now = 1000.0
    epoch = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> float:
        """Give the seconds."""
        return self.now

    def time(self) -> datetime:
        """Give the time of day; ``epoch`` is set to step it alone."""
        return self.epoch + timedelta(seconds=self.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The services of an agent over its parts, and the clock that they look at."""

    parts: Parts
    clock: Clock
    access: Access
    bases: Bases
    creation: Creation
    disks: Disks
    images: Images
    use: Use
    evictions: Evictions
    repair: Repair
    reconcile: Reconcile

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.parts.store.layout

    def left_in_ingest(self) -> list[str]:
        """Name what lies in the folder of unfinished downloads."""
        return sorted(path.name for path in self.layout.ingest.iterdir())

    def metric(self, name: str, **labels: str) -> float:
        """Read one metric; 0 where it has not been set."""
        return self.parts.metrics.registry.get_sample_value(f"cacheagent_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def rig_on(folder: Path, url: str, **sections: dict[str, Any]) -> AsyncIterator[Rig]:
    """Give a rig whose state lies in ``folder``, and whose image service is at ``url``.

    ``sections`` are those of a configuration. If they do not say otherwise it repeats no request
    that fails, and remembers no failure; it waits for nothing before it repeats one.
    """
    glance = {"retries": 0, "failure_ttl": 0, **sections.pop("glance", {})}
    config = parse_config(
        {
            "eviction": {"min_free": 0},
            "glance": glance,
            "storage": _storage(folder),
            **sections,
        }
    )
    async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
        clock = Clock()
        rig = _wired(await _parts(stack, config, url, clock, Background(group)), clock)
        yield rig
        await rig.bases.stop()
        await rig.creation.stop(0)
        await rig.parts.background.stop()


def _storage(folder: Path) -> dict[str, str]:
    return {"state_dir": str(folder / "state")}


async def _parts(
    stack: contextlib.AsyncExitStack,
    config: Config,
    url: str,
    clock: Clock,
    background: Background,
) -> Parts:
    storage = config.storage
    layout = Layout(state_dir=storage.state_dir, instances_dir=storage.instances_dir)
    store = Store(layout, group=None, disk_mode=storage.disk_mode)
    stack.push_async_callback(store.close)
    await store.open()
    catalog = await despite_full(store, lambda: Catalog.open(layout.catalog))
    stack.push_async_callback(catalog.close)
    room = Room(store.usage, cache_bytes=store.cache_bytes, policy=lambda: bounds(config))
    return Parts(
        catalog=catalog,
        store=store,
        glance=await stack.enter_async_context(_glance(config, url)),
        qemu=QemuImg(
            QemuImgSettings(
                binary=config.qemu.qemu_img,
                cpu_time_limit=config.qemu.cpu_time_limit,
                memory_limit=config.qemu.memory_limit,
                convert_threads=config.qemu.convert_threads,
            ),
            RLIMITS,
        ),
        room=room,
        disk_room=room,
        background=background,
        metrics=Metrics(),
        config=lambda: config,
        clock=clock,
        now=clock.time,
        events=Events(clock.time),
    )


def _glance(config: Config, url: str) -> Glance:
    wanted = config.glance
    settings = GlanceSettings(retries=wanted.retries, stall_timeout=wanted.stall_timeout)
    return Glance(settings, NoIdentity(url), backoff=Backoff(pause=_at_once))


async def _at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


def _wired(parts: Parts, clock: Clock) -> Rig:
    access = Access(parts)
    bases = Bases(parts, ingest=Ingest(parts), access=access)
    use = Use(parts, waiters=bases.waiters)
    evictions = Evictions(parts, bases=bases, use=use)
    repair = Repair(parts, bases, use)
    creation = Creation(parts, bases=bases, making=Making(parts))
    return Rig(
        parts=parts,
        clock=clock,
        access=access,
        bases=bases,
        creation=creation,
        disks=Disks(parts, access=access, creation=creation),
        images=Images(parts, bases=bases, access=access, evictions=evictions),
        evictions=evictions,
        use=use,
        repair=repair,
        reconcile=Reconcile(parts, bases=bases, creation=creation, use=use, repair=repair),
    )


async def state_of(rig: Rig, key: DiskKey) -> DiskState:
    """Look at a disk."""
    return (await rig.disks.show(key)).disk.state


async def assert_no_trace(rig: Rig, key: DiskKey) -> None:
    """Check that neither row nor file is left of a disk."""
    with pytest.raises(DiskNotFoundError):
        await rig.disks.show(key)
    assert not rig.layout.instance(key.instance_id).exists()


async def until(holds: Callable[[], object]) -> None:
    """Let the loop turn until something holds that no event tells of."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave ``context`` in one task, as a TaskGroup wants it and a fixture does not."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold() -> None:
        try:
            async with context as value:
                entered.set_result(value)
                await done.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    holding = asyncio.create_task(hold())
    try:
        yield await entered
    finally:
        done.set()
        await holding


async def recorded(rig: Rig, base: Base) -> tuple[User, ...]:
    """Give the users of a base that the catalog knows: disks, pins and leases."""
    return await rig.parts.catalog.users_of(base.base_id, rig.clock.time())
