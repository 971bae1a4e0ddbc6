"""A host with many disks, made in seconds: real names, headers, manifests and rows, no content."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cacheagent import log, wiring
from cacheagent.backends.inspect import INSPECTION_VERSION
from cacheagent.backends.store import Manifest
from cacheagent.config import Config, parse_config
from cacheagent.metrics import Metrics
from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CacheResult,
    Digest,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskName,
    DiskSpec,
    DiskState,
    GlanceImage,
    ImageId,
    InstanceId,
)
from cacheagent.service.background import Background
from cacheagent.service.events import Events
from cacheagent.service.parts import Parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from benchmarks.figures import Run
    from cacheagent.backends.store import Store

VIRTUAL_SIZE = 2 << 30
BLOCK = 4096
"""What is there of a base: as long as any other, it is one hole but for its first block."""

SETTLED = 2.1
"""Seconds after which a file that was written counts as one that stays as it is."""

_SPACE = uuid.UUID("8a6f3a1c-2f5d-4d56-9a3a-5d8b1c7e9f00")
_COMING = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many disks and bases there are; no disk uses the last ``unused`` bases.

    Not ``settled``: so young that the agent does not yet rely on their times.
    """

    disks: int
    bases: int
    unused: int = 0
    settled: bool = True

    @classmethod
    def of(cls, run: Run, *, unused: int = 0) -> Fleet:
        """Give the one that the goals are about, or a small one for a quick run."""
        disks, bases = run.scale(10_000, 20), run.scale(500, 6)
        return cls(disks=disks, bases=bases, unused=unused, settled=not run.quick)


def configuration(folder: Path) -> dict[str, dict[str, object]]:
    """Give the sections of a configuration whose bounds ask for nothing by themselves."""
    return {
        "api": {"socket": str(folder / "api.sock")},
        "metrics": {"listen": ""},
        "storage": {"state_dir": str(folder / "state"), "instances_dir": str(folder / "instances")},
        "glance": {"auth": "none", "endpoint": "http://127.0.0.1:9"},
        "eviction": {
            "min_free": 0,
            "high_watermark": 100,
            "low_watermark": 99,
            "min_age": 0,
            "max_idle": 0,
        },
        "log": {"level": "error"},
    }


@contextlib.asynccontextmanager
async def parts_in(folder: Path) -> AsyncIterator[Parts]:
    """Open the backends as the daemon does, in ``folder``."""
    config = parse_config(configuration(folder))
    log.configure(config.log.level, config.log.format)
    async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
        yield await _opened(stack, config, Background(group))


async def _opened(
    stack: contextlib.AsyncExitStack, config: Config, background: Background
) -> Parts:
    metrics = Metrics()
    store = await wiring.open_store(stack, config.storage)
    room, disk_room = await wiring.rooms(store, lambda: config)
    glance, _ = await wiring.open_glance(stack, config.glance, metrics)
    return Parts(
        catalog=await wiring.open_catalog(stack, store),
        store=store,
        glance=glance,
        qemu=await wiring.open_qemu(config.qemu, metrics),
        room=room,
        disk_room=disk_room,
        background=background,
        metrics=metrics,
        config=lambda: config,
        clock=asyncio.get_running_loop().time,
        now=_now,
        events=Events(_now),
    )


def _now() -> datetime:
    return datetime.now(UTC)


def make_fleet(folder: Path, fleet: Fleet) -> Sequence[str]:
    """Make a fleet in ``folder``, for a daemon, and give the ids of the images that have disks."""
    folder.mkdir(exist_ok=True)
    asyncio.run(_make(folder, fleet))
    return [_image(_base(number)).image_id for number in range(fleet.bases - fleet.unused)]


async def _make(folder: Path, fleet: Fleet) -> None:
    async with parts_in(folder) as parts:
        await fill(parts, fleet)


async def fill(parts: Parts, fleet: Fleet) -> None:
    """Make the bases and disks, and the rows of both."""
    bases = [_base(number) for number in range(fleet.bases)]
    for base in bases:
        await _publish(parts, base)
    used = bases[: fleet.bases - fleet.unused]
    disks = [_disk(number, used[number % len(used)]) for number in range(fleet.disks)]
    template = await _template(parts, used[0])
    await parts.store.run_long(_clone_all, parts.store, template, disks)
    await parts.catalog.adopt(disks=disks)
    await asyncio.sleep(SETTLED if fleet.settled else 0)


def _base(number: int) -> Base:
    came = _now() - _COMING
    return Base(
        base_id=BaseId(f"sha512-{number:0128x}"),
        state=BaseState.READY,
        format=DiskFormat.RAW,
        source_format="qcow2",
        size=BLOCK,
        virtual_size=VIRTUAL_SIZE,
        allocated=BLOCK,
        inspection_version=INSPECTION_VERSION,
        fetched_at=came,
        last_used_at=came,
        file_digest=Digest("sha512", f"{number:0128x}"),
    )


def _image(base: Base) -> GlanceImage:
    return GlanceImage(
        image_id=ImageId(str(uuid.uuid5(_SPACE, base.base_id))),
        name=base.base_id[-8:],
        status="active",
        disk_format="qcow2",
        container_format="bare",
        size=BLOCK,
        os_hash_algo="sha512",
        os_hash_value=base.base_id.partition("-")[2],
    )


async def _publish(parts: Parts, base: Base) -> None:
    image = _image(base)
    part = parts.store.layout.part(image.image_id)
    await parts.store.run(_write_base, part)
    record = await parts.store.publish(part, Manifest(base=base, images=(image,)))
    await parts.catalog.publish(record.base, [image], base.fetched_at)


def _write_base(path: Path) -> None:
    path.write_bytes(b"\1" * BLOCK)
    os.truncate(path, VIRTUAL_SIZE)


def _disk(number: int, base: Base) -> Disk:
    instance = InstanceId(str(uuid.uuid5(_SPACE, f"instance {number}")))
    image_id = _image(base).image_id
    return Disk(
        key=DiskKey(instance_id=instance, name=DiskName("root")),
        spec=DiskSpec(image_id=image_id, size=None),
        state=DiskState.READY,
        format=DiskFormat.QCOW2,
        mode=DiskMode.OVERLAY,
        virtual_size=VIRTUAL_SIZE,
        image_id=image_id,
        base_id=base.base_id,
        cache=CacheResult.HIT,
        created_at=base.fetched_at,
    )


async def _template(parts: Parts, base: Base) -> bytes:
    """Let qemu-img make one overlay, and give its bytes."""
    layout = parts.store.layout
    path = layout.template(base, DiskFormat.QCOW2, VIRTUAL_SIZE, "")
    await parts.qemu.create_overlay(
        path,
        base=layout.base(base.base_id, base.format),
        base_format=base.format,
        size=VIRTUAL_SIZE,
        options="",
    )
    return await parts.store.run(path.read_bytes)


def _clone_all(store: Store, template: bytes, disks: list[Disk]) -> None:
    """Write each disk: the template with the name of its base, which is as long as any other."""
    first, end = disks[0].base_id, template.rstrip(b"\0")
    for disk in disks:
        path = store.layout.disk(disk.key, disk.format)
        path.parent.mkdir()
        path.write_bytes(end.replace(str(first).encode(), str(disk.base_id).encode()))
        os.truncate(path, len(template))
