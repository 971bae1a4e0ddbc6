"""An agent put together: each backend opened as it is configured, the services over all of them.

What is opened here is closed by the stack that was handed in, in the reverse order.
"""

from __future__ import annotations

import asyncio
import grp
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from cacheagent.api.services import Services
from cacheagent.backends.barbican import Barbican, BarbicanSettings
from cacheagent.backends.catalog import Catalog
from cacheagent.backends.glance import Glance, GlanceHooks, GlanceSettings
from cacheagent.backends.identity import NoIdentity
from cacheagent.backends.qemuimg import QemuImg, QemuImgSettings
from cacheagent.backends.store import Store
from cacheagent.errors import ConfigError, QemuImgError
from cacheagent.loops.pruner import Pruner
from cacheagent.loops.reconciler import Reconciler
from cacheagent.loops.reinspector import Reinspector
from cacheagent.loops.revalidator import Revalidator
from cacheagent.loops.scrubber import Scrubber
from cacheagent.loops.watcher import Watcher
from cacheagent.metrics import GLANCE_STATUSES, Metrics
from cacheagent.model import DiskFormat, SandboxKind
from cacheagent.policy.layout import Layout, unfinished
from cacheagent.sandbox import find_sandbox
from cacheagent.service import parts
from cacheagent.service.access import Access
from cacheagent.service.background import Background
from cacheagent.service.bases import Bases
from cacheagent.service.creation import Creation
from cacheagent.service.despite import despite_full
from cacheagent.service.disks import Disks
from cacheagent.service.events import Events
from cacheagent.service.eviction import Evictions
from cacheagent.service.following import Following
from cacheagent.service.images import Images
from cacheagent.service.ingest import Ingest
from cacheagent.service.making import Making
from cacheagent.service.operator import Operator
from cacheagent.service.reconcile import Reconcile
from cacheagent.service.reinspect import Reinspect
from cacheagent.service.repair import Repair
from cacheagent.service.revalidate import Revalidate
from cacheagent.service.room import Room
from cacheagent.service.status import Status
from cacheagent.service.tenancy import TenantDisks
from cacheagent.service.use import Use
from cacheagent.service.verify import Verify
from cacheagent.service.watch import Hooks, Watch
from cacheagent.service.watched import Watched
from cacheagent.sync.precedence import Precedence
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from cacheagent.backends.keystone import KeystoneIdentity, KeystoneSettings
    from cacheagent.config import Config, GlanceConfig, QemuConfig, StorageConfig
    from cacheagent.policy.eviction import EvictionPolicy
    from cacheagent.sandbox import Sandbox
    from cacheagent.service.parts import Parts

PROBE_SIZE = 1 << 20
"""Bytes of the disk that is made to try the options of overlays."""

_log = structlog.get_logger(__name__)


class Loop(Protocol):
    """A background loop: it decides when, a service decides what."""

    async def run(self) -> None:
        """Go on for ever, until cancelled. What one round meets does not end the loop."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A daemon's services, wired together over its backends."""

    services: Services
    status: Status
    bases: Bases
    creation: Creation
    background: Background
    reconciler: Reconciler
    pruner: Pruner
    loops: tuple[Loop, ...]
    metrics: Metrics
    events: Events
    precedence: Precedence


def wire(parts: Parts) -> Agent:
    """Make the services over their parts; nothing runs yet."""
    access = Access(parts)
    bases = Bases(parts, ingest=Ingest(parts), access=access)
    use = Use(parts, waiters=bases.waiters)
    evictions = Evictions(parts, bases=bases, use=use)
    repair = Repair(parts, bases, use)
    verify = Verify(parts, bases, repair, access=access)
    creation = Creation(parts, bases=bases, making=Making(parts))
    status = Status(parts, bases=bases, outcome=evictions.outcome, access=access)
    reconcile = Reconcile(parts, bases=bases, creation=creation, use=use, repair=repair)
    reconciler = Reconciler(reconcile, parts.now, status.loops)
    pruner = Pruner(evictions, parts.config, parts.now, status.loops)
    images = Images(parts, bases=bases, access=access, evictions=evictions)
    own = Disks(parts, access=access, creation=creation)
    disks = TenantDisks(parts, disks=own, access=access, creation=creation)
    services = Services(
        access=access,
        disks=disks,
        images=images,
        operator=Operator(parts, images=images, evictions=evictions, access=access),
        verify=verify,
        events=Following(parts, access=access, disks=disks),
        status=status,
    )
    hooks = _hooks(pruner, reconciler, repair, verify)
    watch = Watch(parts, creation=creation, watched=Watched(parts), hooks=hooks)
    reinspect = Reinspect(parts, bases, repair)
    revalidate = Revalidate(parts, lambda: pruner.nudge("deletion"))
    return Agent(
        services=services,
        status=status,
        bases=bases,
        creation=creation,
        background=parts.background,
        reconciler=reconciler,
        pruner=pruner,
        loops=(
            pruner,
            reconciler,
            Watcher(watch, parts.config, parts.now, status.loops),
            Scrubber(verify, repair, parts.config, parts.now, parts.clock, status.loops),
            Reinspector(reinspect, parts.config, parts.now, parts.clock, status.loops),
            Revalidator(revalidate, parts.config, parts.now, parts.clock, status.loops),
        ),
        metrics=parts.metrics,
        events=parts.events,
        precedence=parts.precedence,
    )


def _hooks(pruner: Pruner, reconciler: Reconciler, repair: Repair, verify: Verify) -> Hooks:
    """Give what is done about what happens to the files."""
    return Hooks(
        reconcile=reconciler.nudge,
        prune=pruner.nudge,
        lost=repair.lost,
        verify=lambda base: verify.verify_base(base, Throttle(None)),
        damaged=repair.damaged,
    )


async def open_store(stack: AsyncExitStack, config: StorageConfig) -> Store:
    """Open the folders, and take the lock of the state folder.

    Raises:
        ConfigError: there is no such group, or a folder cannot be used.
        StateDirBusyError: another agent has the state folder.

    """
    layout = Layout(state_dir=config.state_dir, instances_dir=config.instances_dir)
    group = await asyncio.to_thread(file_group, config)
    store = Store(layout, group=group, disk_mode=config.disk_mode)
    stack.push_async_callback(store.close)
    try:
        await store.open()
    except OSError as error:
        where = error.filename or layout.state_dir
        raise ConfigError(f"[storage]: {where}: {error.strerror or error}") from error
    return store


def file_group(config: StorageConfig) -> int | None:
    """Give the group that disks and bases belong to; None = that of the daemon. It blocks.

    Raises:
        ConfigError: this host has no such group.

    """
    name = config.file_group
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"storage.file_group: there is no group {name!r}") from None


async def open_catalog(stack: AsyncExitStack, store: Store) -> Catalog:
    """Open the catalog; say where the files make it anew, and so what is lost.

    Raises:
        CatalogError: it cannot be used.
        DiskFullError: the file system has no room for it, and no spare bytes are left.

    """
    catalog = await despite_full(store, lambda: Catalog.open(store.layout.catalog))
    stack.push_async_callback(catalog.close)
    lost = "pins and times of last use are gone"
    if catalog.set_aside is not None:
        _log.error("the catalog was broken", lost=lost, set_aside=str(catalog.set_aside))
    elif catalog.rebuilt:
        _log.warning("there is no catalog; a first start, or it was removed", lost=lost)
    return catalog


async def open_glance(
    stack: AsyncExitStack, config: GlanceConfig, metrics: Metrics
) -> tuple[Glance, Barbican]:
    """Make the image service, and the key manager of its cloud, ready; nothing is asked yet.

    Raises:
        ConfigError: the cloud or the file of authorities cannot be used.

    """
    identity, ca_file = await _open_identity(stack, config, metrics)
    hooks = GlanceHooks(
        on_request=partial(_count_request, metrics),
        on_resume=metrics.download_resumed_bytes_total.inc,
        throttle=Throttle(config.bandwidth_limit).share,
    )
    settings = GlanceSettings(
        connect_timeout=config.connect_timeout,
        stall_timeout=config.stall_timeout,
        retries=config.retries,
        ca_file=ca_file,
    )
    keys = BarbicanSettings(
        connect_timeout=config.connect_timeout, timeout=config.stall_timeout, ca_file=ca_file
    )
    return (
        await stack.enter_async_context(Glance(settings, identity, hooks=hooks)),
        await stack.enter_async_context(Barbican(keys, identity)),
    )


async def _open_identity(
    stack: AsyncExitStack, config: GlanceConfig, metrics: Metrics
) -> tuple[NoIdentity | KeystoneIdentity, Path | None]:
    """Give who we are to Glance, and the authorities that Glance's certificate is checked with."""
    if config.auth == "none":
        return NoIdentity(*config.endpoint), config.ca_file
    KeystoneIdentity, KeystoneSettings = await asyncio.to_thread(_keystone)  # noqa: N806 -- classes
    settings = KeystoneSettings(
        cloud=config.cloud,
        region=config.region,
        interface=config.interface,
        endpoints=config.endpoint,
        ca_file=config.ca_file,
        timeout=config.connect_timeout,
    )
    identity = KeystoneIdentity(settings, on_failure=metrics.token_refresh_failures_total.inc)
    stack.push_async_callback(identity.close)
    await identity.start()
    return identity, config.ca_file or identity.ca_file


def _keystone() -> tuple[type[KeystoneIdentity], type[KeystoneSettings]]:
    """Load what speaks with Keystone. For threads: it reads many files."""
    # The libraries of OpenStack take 20 MiB, which a daemon without a Keystone need not have.
    from cacheagent.backends import keystone  # noqa: PLC0415 -- see above

    return keystone.KeystoneIdentity, keystone.KeystoneSettings


def _count_request(metrics: Metrics, call: str, status: str) -> None:
    known = status if status in GLANCE_STATUSES else "other"
    metrics.glance_requests_total.labels(call, known).inc()


async def open_qemu(config: QemuConfig, metrics: Metrics) -> QemuImg:
    """Give qemu-img, after asking for its version: without it no disk can be made.

    Raises:
        ProgramMissingError: it is not installed.
        ConfigError: what it is to be shut in by does not work here.

    """
    settings = QemuImgSettings(
        binary=config.qemu_img,
        cpu_time_limit=config.cpu_time_limit,
        memory_limit=config.memory_limit,
        convert_threads=config.convert_threads,
    )
    refused: dict[str, str] = {}
    sandbox = await open_sandbox(config, refused.__setitem__)
    # Why a safer one does not work matters to an operator who is left with none.
    bare = sandbox.kind is SandboxKind.RLIMITS
    for kind, why in refused.items():
        (_log.warning if bare else _log.debug)("this sandbox does not work", kind=kind, why=why)
    (_log.warning if bare else _log.info)("what qemu-img is shut in by", sandbox=sandbox.kind)
    metrics.sandbox.labels(kind=sandbox.kind).set(1)
    qemu = QemuImg(settings, sandbox)
    metrics.identify(qemu_img=await qemu.version())
    return qemu


async def open_sandbox(
    config: QemuConfig, on_refusal: Callable[[SandboxKind, str], object]
) -> Sandbox:
    """Give what qemu-img is shut in by; ``on_refusal`` hears why a safer one does not work.

    Raises:
        ConfigError: the one that is wanted does not work here.

    """
    return await find_sandbox(
        config.wanted_sandbox,
        socket=config.sandbox_socket,
        program=config.qemu_img,
        on_refusal=on_refusal,
    )


async def rooms(store: Store, config: Callable[[], Config]) -> tuple[Room, Room]:
    """Give the ledgers of what bases and disks lie on: one, where that is one file system."""
    room = Room(store.usage, cache_bytes=store.cache_bytes, policy=lambda: parts.bounds(config()))
    if await store.is_one_file_system():
        return room, room
    return room, Room(store.disk_usage, cache_bytes=_none, policy=lambda: _free(config()))


async def _none() -> int:
    """Count the cache where it does not lie."""
    return 0


def _free(config: Config) -> EvictionPolicy:
    """Give the bounds of a file system without cache: what has to stay free."""
    return replace(
        parts.bounds(config), max_size=None, high_watermark=100, low_watermark=100, min_keep=0
    )


async def check_overlay_options(qemu: QemuImg, store: Store, options: str) -> None:
    """Let qemu-img make an overlay as every disk will be made.

    Raises:
        ConfigError: it does not take the options.

    """
    probe = unfinished(store.layout.template(None, DiskFormat.QCOW2, PROBE_SIZE, options))
    try:
        await qemu.create(probe, DiskFormat.QCOW2, size=PROBE_SIZE, options=options)
    except QemuImgError as error:
        if not error.no_space:  # a full disk says nothing of the options
            raise ConfigError(f"overlay.options: {error}") from error
    finally:
        await store.remove([probe])
