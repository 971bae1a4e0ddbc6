"""The configuration while the daemon runs: read again on SIGHUP, and when its file changes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent import log
from cacheagent.backends.inotify import FileEventKind, Watcher
from cacheagent.config import load_config
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from cacheagent.backends.systemd import Notifier
    from cacheagent.config import Config
    from cacheagent.metrics import Metrics

_CHANGES = {FileEventKind.WRITTEN, FileEventKind.MOVED_IN}

_log = structlog.get_logger(__name__)


class Live:
    """The configuration as it is now: the one value that a reload replaces.

    Without a ``path`` there is nothing to read again, and it stays as it is. ``notifier`` hears
    when a reload begins and ends, and what it came to.
    """

    def __init__(
        self, config: Config, path: Path | None, metrics: Metrics, notifier: Notifier
    ) -> None:
        self._config = config
        self._path = path
        self._notifier = notifier
        self._asked = asyncio.Event()
        self._told: list[Callable[[], None]] = []
        self._read_with: list[Callable[[], Awaitable[None]]] = []
        self.metrics = metrics

    def __call__(self) -> Config:
        """Give the configuration."""
        return self._config

    def tell(self, whom: Callable[[], None]) -> None:
        """Call ``whom`` after each reload that changed something."""
        self._told.append(whom)

    def read_with(self, files: Callable[[], Awaitable[None]]) -> None:
        """Have ``files`` read again with each reload; where it raises ``ConfigError`` that fails.

        For files that keys name: they change, and the keys do not.
        """
        self._read_with.append(files)

    def ask(self) -> None:
        """Have the file read again, by ``follow``; a signal handler may call it."""
        self._asked.set()

    async def follow(self) -> None:
        """Read the file again whenever somebody asked for it, for ever."""
        while await self._asked.wait():
            self._asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Read the file again: take over what can change now, and say what cannot."""
        if self._path is None:
            return
        self._notifier.reloading()
        try:
            new = await asyncio.to_thread(load_config, self._path)
            for files in self._read_with:
                await files()
            self._take_over(new)
        except ConfigError as error:
            self.metrics.config_reload_success.set(0)
            _log.error("the configuration is kept as it was", why=str(error))
            self._notifier.status(f"the configuration is kept as it was: {error}")
        finally:
            self._notifier.ready()

    def _take_over(self, new: Config) -> None:
        reload = self._config.reload_from(new)
        self._config = reload.config
        self.metrics.config_reload_success.set(1)
        log.configure(self._config.log.level, self._config.log.format)
        for whom in self._told if reload.changed else ():
            whom()
        _log.info("reloaded", changed=reload.changed, needs_restart=reload.needs_restart)
        waiting = ", ".join(reload.needs_restart) or "nothing"
        self._notifier.status(f"the configuration was reloaded; {waiting} waits for a restart")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Inside the context, ask whenever the file is written or another one takes its name."""
        if self._path is None:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                watcher = await stack.enter_async_context(await Watcher.open())
                await watcher.watch(self._path.parent)
            except OSError as error:
                _log.warning("the configuration is reloaded on SIGHUP only", why=str(error))
                yield
                return
            noting = asyncio.create_task(self._note_changes(watcher))
            try:
                yield
            finally:
                watcher.close()
                await noting

    async def _note_changes(self, watcher: Watcher) -> None:
        async for events in watcher.events():
            if any(event.path == self._path and event.kind in _CHANGES for event in events):
                self.ask()
