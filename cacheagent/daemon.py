"""The daemon: starts everything, serves, and stops it in order.

Start: the state folder is locked, the catalog opened, files and catalog reconciled; then the API
is reachable and the service manager hears that we are ready. Stop: no new requests, downloads end
so that they can be resumed, what is being made is finished, then everything closes in the reverse
order of its opening.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cacheagent import log, wiring
from cacheagent.api import listen
from cacheagent.api.app import create_app, create_metrics_app
from cacheagent.api.credentials import Credentials
from cacheagent.api.server import STOP_SECONDS, Bounds, HttpServer
from cacheagent.backends.systemd import Notifier, passed_sockets
from cacheagent.live import Live
from cacheagent.metrics import Metrics
from cacheagent.service.background import Background
from cacheagent.service.events import Events
from cacheagent.service.parts import Parts
from cacheagent.sync.rates import Rates

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.config import ApiConfig, Config
    from cacheagent.wiring import Agent

_SCRAPERS = 64
"""Connections to the listener of the metrics."""

_BURST_SECONDS = 4
"""How many seconds' worth of requests a peer may send at once, after it was quiet."""

_GARBAGE_THRESHOLD = 10_000
"""New objects after which the youngest are looked through for garbage; Python has 700."""

_DESCRIPTORS = 65536
"""Open files that the daemon asks for: what the unit gives it."""

_log = structlog.get_logger(__name__)


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
    notifier = Notifier(os.environ)
    live = Live(config, config_path, Metrics(), notifier)
    stop = _signals(live)
    await stack.enter_async_context(live.watched())
    helpers: list[asyncio.Task[None]] = []
    # To the very end: closing may take longer than the watchdog waits.
    stack.callback(_cancel, helpers)
    agent = wiring.wire(await _open(stack, live, Background(group)))
    await _start(stack, live, agent)
    # A bound that was lowered holds from now on.
    live.tell(partial(agent.pruner.nudge, "interval"))
    helpers.extend(group.create_task(each) for each in (_watch_over(notifier), live.follow()))
    loops = [group.create_task(loop.run()) for loop in agent.loops]
    _spare_collections()
    notifier.ready()
    await stop.wait()
    notifier.stopping()
    await _stop(agent, loops)


def _spare_collections() -> None:
    """Keep what is there now from being looked through for garbage, and look less often.

    With ten thousand disks a full collection held every request up for 80 ms. What the daemon
    lives on stays anyway; what a request leaves behind in cycles is little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)


def _signals(live: Live) -> asyncio.Event:
    """Give what SIGTERM and SIGINT set; SIGHUP asks for a reload."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # From the very beginning: what changes during a long start is read after it.
    loop.add_signal_handler(signal.SIGHUP, live.ask)
    return stop


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _start(stack: contextlib.AsyncExitStack, live: Live, agent: Agent) -> None:
    """Reconcile, then make the API reachable; the metrics tell of it meanwhile."""
    # A start that fails later has begun some work already.
    stack.push_async_callback(agent.background.stop)
    # Before that: what was being resumed stays resumable.
    stack.push_async_callback(agent.bases.stop)
    metrics = await _listen_for_metrics(stack, live(), agent)
    await agent.reconciler.start()
    listening = await _listen(stack, live, agent)
    agent.status.ready = True
    _log.info("ready", listening=listening, metrics=metrics)


async def _stop(agent: Agent, loops: list[asyncio.Task[None]]) -> None:
    """Take no new work, let go of downloads, and let what is being made end if it does soon."""
    _log.info("stopping")
    agent.status.stopping = True
    # Those who follow them would hold up the end, and come back to the next daemon.
    agent.events.close()
    _cancel(loops)
    if loops:
        await asyncio.wait(loops)
    await agent.bases.stop()
    await agent.creation.stop(STOP_SECONDS)
    await agent.background.stop()


async def _open(stack: contextlib.AsyncExitStack, live: Live, background: Background) -> Parts:
    """Open every backend; the stack closes them in reverse."""
    config = live()
    store = await wiring.open_store(stack, config.storage)
    qemu = await wiring.open_qemu(config.qemu, live.metrics)
    await wiring.check_overlay_options(qemu, store, config.overlay.options)
    room, disk_room = await wiring.rooms(store, live)
    catalog = await wiring.open_catalog(stack, store)
    glance, barbican = await wiring.open_glance(stack, config.glance, live.metrics)
    return Parts(
        catalog=catalog,
        store=store,
        glance=glance,
        qemu=qemu,
        room=room,
        disk_room=disk_room,
        background=background,
        metrics=live.metrics,
        config=live,
        clock=asyncio.get_running_loop().time,
        now=_now,
        events=Events(_now),
        barbican=barbican,
    )


def _now() -> datetime:
    return datetime.now(UTC)


async def _listen_for_metrics(
    stack: contextlib.AsyncExitStack, config: Config, agent: Agent
) -> list[str]:
    """Make the metrics reachable, and tell where."""
    if config.metrics.listen is None:
        return []
    app = create_metrics_app(agent.status, agent.metrics)
    # A server of its own: whoever floods the API does not hide it from who watches.
    server = await HttpServer.start(
        app, Bounds(connections=_SCRAPERS), agent.metrics, agent.precedence
    )
    stack.push_async_callback(server.close)
    await listen.listen_tcp(server, config.metrics.listen, "metrics.listen")
    return listen.addresses(server)


async def _listen(stack: contextlib.AsyncExitStack, live: Live, agent: Agent) -> list[str]:
    """Make the API reachable, and tell where; on the way out, what is under way ends first."""
    api = live().api
    credentials = await Credentials.load(api)
    live.read_with(credentials.reload)
    app = create_app(
        agent.services,
        agent.metrics,
        require_token=api.require_token,
        bearers=credentials.bearers,
        rates=_rates(api),
    )
    server = await HttpServer.start(app, _bounds(api), agent.metrics, agent.precedence)
    stack.push_async_callback(server.close)
    passed = [one for named in passed_sockets(os.environ).values() for one in named]
    for listener in passed:
        await listen.listen_passed(server, listener, api, credentials.tls)
    if not passed:
        await listen.listen_unix(server, api)
        stack.push_async_callback(asyncio.to_thread, api.socket.unlink, missing_ok=True)
    if api.listen is not None:
        await listen.listen_tcp(server, api.listen, "api.listen", credentials.tls)
    return listen.addresses(server, credentials.tls)


def _rates(api: ApiConfig) -> Rates | None:
    rate = api.requests_per_second
    return Rates(rate, _BURST_SECONDS * rate) if rate else None


def _bounds(api: ApiConfig) -> Bounds:
    """Leave half of the descriptors to downloads and disks, whatever is configured."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A login's soft limit is that of select(2), which nothing here uses.
    soft = max(soft, min(hard, _DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return Bounds(connections=min(api.max_connections, soft // 2))


async def _watch_over(notifier: Notifier) -> None:
    """Tell the service manager again and again that the loop turns."""
    while notifier.watchdog_interval is not None:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_interval)
