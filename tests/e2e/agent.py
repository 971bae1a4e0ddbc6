"""A real daemon for a test: its own process, its own folders, reached over its Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon answered: status, headers, and the JSON of the body."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def problem(self) -> str:
        """The word of the problem that was answered."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self
        return str(self.body["type"]).removeprefix("urn:cacheagent:")


@dataclass
class Agent:
    """One state folder, and the daemon that runs on it while it is started.

    ``settings`` are the sections of its configuration, over those that a test always needs.
    """

    folder: Path
    settings: Mapping[str, Mapping[str, object]]
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: asyncio.subprocess.Process | None = None
    _session: aiohttp.ClientSession | None = None

    @property
    def api_socket(self) -> Path:
        """Where the daemon listens."""
        return self.folder / "api.sock"

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.folder / "state"

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "log").read_text()

    def left_in_ingest(self) -> list[str]:
        """Name what lies in the folder of unfinished downloads."""
        return sorted(path.name for path in (self.state / "ingest").iterdir())

    def bases(self) -> list[str]:
        """Name what lies in the folder of the bases."""
        return sorted(path.name for path in (self.state / "bases").iterdir())

    async def start(self) -> None:
        """Start the daemon, and return when it says that it is ready."""
        config = self.folder / "config.toml"
        config.write_text(self._config())
        with contextlib.closing(_notify_socket(self.folder / "notify")) as notify:
            environment = {**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify")}
            with (self.folder / "log").open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "cacheagent", "serve", "--config", config),
                    env={**environment, **self.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            await self._ready(notify)
        connector = aiohttp.UnixConnector(str(self.api_socket), limit=0)
        self._session = aiohttp.ClientSession("http://agent", connector=connector)

    async def _ready(self, notify: socket.socket) -> None:
        assert self._process is not None
        loop = asyncio.get_running_loop()
        exited = asyncio.ensure_future(self._process.wait())
        said = asyncio.ensure_future(loop.sock_recv(notify, 4096))
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait({exited, said}, return_when=asyncio.FIRST_COMPLETED)
            assert not exited.done(), self.log
            assert said.result() == b"READY=1"
        finally:
            exited.cancel()
            said.cancel()
            await asyncio.wait({exited, said})

    async def stop(self) -> int:
        """Ask the daemon to stop as the service manager would, and give its exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End the daemon without a word of warning."""
        assert await self._end(signal.SIGKILL) == -signal.SIGKILL

    def send(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        session, self._session = self._session, None
        assert process is not None
        assert session is not None
        process.send_signal(number)
        async with asyncio.timeout(START_SECONDS):
            status = await process.wait()
        await session.close()
        return status

    async def close(self) -> None:
        """Kill the daemon if the test has left it running."""
        if self._process is not None and self._session is None:
            # One that could not start has gone by itself.
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        elif self._process is not None:
            await self._end(signal.SIGKILL)

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request, and give the answer."""
        assert self._session is not None
        async with self._session.request(
            method, path, json=body, data=data, headers=headers
        ) as response:
            text = await response.text()
            is_json = "json" in response.headers.get("Content-Type", "")
            parsed = json.loads(text) if is_json else text
            return Answer(response.status, dict(response.headers), parsed)

    async def create(self, image_id: str | None, key: str = "", /, **spec: object) -> Answer:
        """Ask for a disk: of the image, under ``<instance id>/<name>`` or a name that is new."""
        instance_id, _, name = (key or str(uuid.uuid4())).partition("/")
        body = spec if image_id is None else {"image_id": image_id, **spec}
        return await self.ask("PUT", f"/v1/instances/{instance_id}/disks/{name or 'root'}", body)

    async def metric(self, name: str) -> float:
        """Read one metric, by its name and labels as they stand in the text."""
        text = (await self.ask("GET", "/metrics")).body
        lines = (line for line in text.splitlines() if line.startswith(f"cacheagent_{name} "))
        return float(next(lines).split()[-1])

    def _config(self) -> str:
        """Write the configuration as TOML; JSON's strings, numbers and lists are TOML too."""
        always: dict[str, dict[str, object]] = {
            "api": {"socket": str(self.api_socket)},
            "metrics": {"listen": ""},
            "storage": {"state_dir": str(self.state)},
            "eviction": {"min_free": 0},
        }
        sections = {
            name: {**always.get(name, {}), **self.settings.get(name, {})}
            for name in {**always, **self.settings}
        }
        return "\n".join(
            line
            for name, values in sections.items()
            for line in (f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items()))
        )


@contextlib.asynccontextmanager
async def agent_on(
    settings: Mapping[str, Mapping[str, object]], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Agent]:
    """Give an agent that is started, in a folder whose path is short enough for its socket."""
    with tempfile.TemporaryDirectory(prefix="ca-", ignore_cleanup_errors=True) as folder:
        agent = Agent(Path(folder), settings, environment or {})
        try:
            await agent.start()
            yield agent
        finally:
            await agent.close()


def without_keystone(url: str, **sections: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Give the settings for an image service at ``url`` that asks for no token."""
    glance = {"auth": "none", "endpoint": url, **sections.pop("glance", {})}
    return {"glance": glance, **sections}


def _notify_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    notify.bind(str(path))
    return notify
