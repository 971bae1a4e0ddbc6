"""The daemon: builds everything, starts and stops it in order.

Start: the state folder is locked, the catalog opened, files and catalog reconciled; then the API
is reachable and the service manager hears that we are ready. Stop: no new requests, downloads end
so that they can be resumed, what is being made is finished, then everything closes in the reverse
order of its opening.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheagent import log
from cacheagent.api import listen
from cacheagent.api.app import create_app, create_metrics_app
from cacheagent.api.services import Services
from cacheagent.backends.catalog import Catalog
from cacheagent.backends.glance import Glance, GlanceHooks, GlanceSettings
from cacheagent.backends.identity import KeystoneIdentity, KeystoneSettings, NoIdentity
from cacheagent.backends.qemuimg import QemuImg, QemuImgSettings
from cacheagent.backends.store import Store
from cacheagent.backends.systemd import Notifier, passed_sockets
from cacheagent.errors import ConfigError
from cacheagent.live import Live
from cacheagent.loops.reconciler import Reconciler
from cacheagent.metrics import GLANCE_STATUSES, Metrics
from cacheagent.policy.layout import Layout
from cacheagent.service.access import Access
from cacheagent.service.background import Background
from cacheagent.service.bases import Bases
from cacheagent.service.disks import Disks
from cacheagent.service.images import Images
from cacheagent.service.ingest import Ingest
from cacheagent.service.making import Making
from cacheagent.service.parts import Parts
from cacheagent.service.reconcile import Reconcile
from cacheagent.service.room import Room
from cacheagent.service.status import Status
from cacheagent.service.use import Use
from cacheagent.sync.throttle import Throttle

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.config import Config

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A daemon's services, wired together over its backends."""

    services: Services
    status: Status
    bases: Bases
    background: Background
    reconciler: Reconciler
    metrics: Metrics


async def run(config: Config, config_path: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: something that the configuration names cannot be used.
        StateDirBusyError: another agent has the state folder.
        CatalogError: the catalog cannot be used.
        ProgramMissingError: there is no qemu-img.

    """
    log.configure(config.log.level, config.log.format)
    for key in config.without_effect():
        _log.warning("this key has no effect in this version", key=key)
    try:
        async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
            await _serve(group, stack, config, config_path)
    except BaseExceptionGroup as errors:
        # A start that fails has one cause, and who called wants that, not a group around it.
        if len(errors.exceptions) > 1:
            raise
        raise errors.exceptions[0] from None


async def _serve(
    group: asyncio.TaskGroup,
    stack: contextlib.AsyncExitStack,
    config: Config,
    config_path: Path | None,
) -> None:
    """Start, serve until a signal, stop; what the stack holds is closed by the caller."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    live = Live(config, config_path, Metrics())
    # From the very beginning: what changes during a long start is read after it.
    loop.add_signal_handler(signal.SIGHUP, live.ask)
    await stack.enter_async_context(live.watched())
    notifier = Notifier(os.environ)
    helpers: list[asyncio.Task[None]] = []
    # To the very end: closing may take longer than the watchdog waits.
    stack.callback(_cancel, helpers)
    agent = _wire(await _open(stack, live, Background(group)))
    # A start that fails later has begun some work already.
    stack.push_async_callback(agent.background.stop)
    metrics = await _listen_for_metrics(stack, config, agent)
    await agent.reconciler.start()
    listening = await _listen(stack, config, agent)
    helpers.extend(group.create_task(each) for each in (_watch_over(notifier), live.follow()))
    agent.status.ready = True
    _log.info("ready", listening=listening, metrics=metrics)
    notifier.ready()
    await stop.wait()
    notifier.stopping()
    await _stop(agent)


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _stop(agent: Agent) -> None:
    """Take no new work and let go of what waits; closing a listener waits for what is made."""
    _log.info("stopping")
    agent.status.stopping = True
    await agent.bases.stop()
    await agent.background.stop()


async def _open(stack: contextlib.AsyncExitStack, live: Live, background: Background) -> Parts:
    """Open every backend; the stack closes them in reverse."""
    config = live()
    layout = Layout(state_dir=config.storage.state_dir, instances_dir=config.storage.instances_dir)
    group = await asyncio.to_thread(_group_id, config)
    store = Store(layout, group=group, disk_mode=config.storage.disk_mode)
    stack.push_async_callback(store.close)
    await _open_store(store)
    catalog = await Catalog.open(layout.catalog)
    stack.push_async_callback(catalog.close)
    _tell_of_new_catalog(catalog)
    glance = await _open_glance(stack, config, live.metrics)
    qemu = QemuImg(
        QemuImgSettings(
            binary=config.qemu.qemu_img,
            cpu_time_limit=config.qemu.cpu_time_limit,
            memory_limit=config.qemu.memory_limit,
            convert_threads=config.qemu.convert_threads,
        )
    )
    # Without it no disk can be made: better to know that now.
    live.metrics.identify(qemu_img=await qemu.version())
    return Parts(
        catalog=catalog,
        store=store,
        glance=glance,
        qemu=qemu,
        room=Room(store.usage, min_free=lambda: live().eviction.min_free),
        background=background,
        metrics=live.metrics,
        config=live,
        clock=asyncio.get_running_loop().time,
    )


async def _open_store(store: Store) -> None:
    try:
        await store.open()
    except OSError as error:
        where = error.filename or store.layout.state_dir
        raise ConfigError(f"[storage]: {where}: {error.strerror or error}") from error


def _tell_of_new_catalog(catalog: Catalog) -> None:
    """Say that the files make the catalog anew, and so what is lost."""
    lost = "pins and times of last use are gone"
    if catalog.set_aside is not None:
        _log.error("the catalog was broken", lost=lost, set_aside=str(catalog.set_aside))
    elif catalog.rebuilt:
        _log.warning("there is no catalog; a first start, or it was removed", lost=lost)


async def _open_glance(
    stack: contextlib.AsyncExitStack, config: Config, metrics: Metrics
) -> Glance:
    settings = config.glance
    identity: NoIdentity | KeystoneIdentity
    ca_file = settings.ca_file
    if settings.auth == "none":
        identity = NoIdentity(*settings.endpoint)
    else:
        identity = KeystoneIdentity(
            KeystoneSettings(
                cloud=settings.cloud,
                region=settings.region,
                interface=settings.interface,
                endpoints=settings.endpoint,
                ca_file=settings.ca_file,
                timeout=settings.connect_timeout,
            ),
            on_failure=metrics.token_refresh_failures_total.inc,
        )
        stack.push_async_callback(identity.close)
        await identity.start()
        ca_file = ca_file or identity.ca_file
    hooks = GlanceHooks(
        on_request=partial(_count_request, metrics),
        on_resume=metrics.download_resumed_bytes_total.inc,
        throttle=Throttle(settings.bandwidth_limit).take,
    )
    glance = Glance(
        GlanceSettings(
            connect_timeout=settings.connect_timeout,
            stall_timeout=settings.stall_timeout,
            retries=settings.retries,
            ca_file=ca_file,
        ),
        identity,
        hooks=hooks,
    )
    return await stack.enter_async_context(glance)


def _count_request(metrics: Metrics, call: str, status: str) -> None:
    known = status if status in GLANCE_STATUSES else "other"
    metrics.glance_requests_total.labels(call, known).inc()


def _wire(parts: Parts) -> Agent:
    access = Access(parts)
    bases = Bases(parts, ingest=Ingest(parts), access=access)
    use = Use(parts)
    status = Status(parts, bases=bases)
    return Agent(
        services=Services(
            disks=Disks(parts, bases=bases, access=access, making=Making(parts)),
            images=Images(parts, bases=bases, use=use, access=access),
            status=status,
        ),
        status=status,
        bases=bases,
        background=parts.background,
        reconciler=Reconciler(Reconcile(parts, bases=bases), status.loops),
        metrics=parts.metrics,
    )


async def _listen_for_metrics(
    stack: contextlib.AsyncExitStack, config: Config, agent: Agent
) -> list[str]:
    """Make the metrics reachable, and tell where."""
    if config.metrics.listen is None:
        return []
    runner = await listen.start(create_metrics_app(agent.status, agent.metrics))
    stack.push_async_callback(runner.cleanup)
    await listen.listen_tcp(runner, config.metrics.listen, "metrics.listen")
    return listen.addresses(runner)


async def _listen(stack: contextlib.AsyncExitStack, config: Config, agent: Agent) -> list[str]:
    """Make the API reachable, and tell where; on the way out, what is under way ends first."""
    api = config.api
    app = create_app(
        agent.services,
        agent.metrics,
        require_token=api.require_token,
        bearer_digests=await listen.bearer_digests(api),
    )
    tls = await listen.tls_context(api)
    runner = await listen.start(app)
    stack.push_async_callback(runner.cleanup)
    passed = [one for named in passed_sockets(os.environ).values() for one in named]
    for listener in passed:
        await listen.listen_passed(runner, listener, tls)
    if not passed:
        await listen.listen_unix(runner, api)
        stack.push_async_callback(asyncio.to_thread, api.socket.unlink, missing_ok=True)
    if api.listen is not None:
        await listen.listen_tcp(runner, api.listen, "api.listen", tls)
    return listen.addresses(runner, tls)


async def _watch_over(notifier: Notifier) -> None:
    """Tell the service manager again and again that the loop turns."""
    while notifier.watchdog_interval is not None:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_interval)


def _group_id(config: Config) -> int | None:
    name = config.storage.file_group
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"storage.file_group: there is no group {name!r}") from None
