"""A real daemon for a test: its own process, its own folders, reached over its Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START_SECONDS = 30


class Running(Protocol):
    """The process of a daemon, however it was started."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    async def wait(self) -> int:
        """Wait for its end, and give its exit status."""
        ...

    def send_signal(self, signal: int, /) -> None:
        """Send it a signal; ``ProcessLookupError`` where it has ended."""


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
    ``launcher`` is a program that starts the daemon, and gets ``descriptors`` to pass on.
    """

    folder: Path
    settings: Mapping[str, Mapping[str, object]]
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()
    descriptors: Sequence[int] = ()
    _notify: socket.socket | None = None
    _process: Running | None = None
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
    def config(self) -> Path:
        """Its configuration, once it was started or ``write_config`` called."""
        return self.folder / "config.toml"

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "log").read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Give the lines of the log about ``event``, of a daemon that writes it as JSON."""
        lines = (json.loads(line) for line in self.log.splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    async def logged(self, event: str, number: int = 1) -> dict[str, Any]:
        """Wait for the line of this number about ``event``, and give it."""
        async with asyncio.timeout(START_SECONDS):
            while len(found := self.lines(event)) < number:
                await self.ask("GET", "/healthz")
        return found[number - 1]

    def left_in_ingest(self) -> list[str]:
        """Name what lies in the folder of unfinished downloads."""
        return sorted(path.name for path in (self.state / "ingest").iterdir())

    def bases(self) -> list[str]:
        """Name what lies in the folder of the bases."""
        return sorted(path.name for path in (self.state / "bases").iterdir())

    @property
    def pid(self) -> int:
        """The process of the daemon."""
        assert self._process is not None
        return self._process.pid

    def address(self, name: str = "listening") -> str:
        """Give the URL of its TCP listener; ``metrics``: of that of the metrics."""
        found = re.findall(rf"{name}\W.*?(https?://[^'\"\s]+)", self.log)
        return str(found[-1])

    async def start(self) -> None:
        """Start the daemon, and return when it says that it is ready."""
        self.write_config()
        self._notify = _notify_socket(self.folder / "notify")
        self._process = await self._run()
        try:
            assert await self.told() == "READY=1"
        except BaseException:
            await self.close()
            raise
        connector = aiohttp.UnixConnector(str(self.api_socket), limit=0)
        self._session = aiohttp.ClientSession("http://agent", connector=connector)

    async def _run(self) -> Running:
        environment = {**os.environ, "NOTIFY_SOCKET": str(self.folder / "notify")}
        with (self.folder / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(*self.launcher, sys.executable, "-m", "cacheagent"),
                *("serve", "--config", self.config),
                env={**environment, **self.environment},
                pass_fds=self.descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def told(self) -> str:
        """Wait for what the daemon tells the service manager next; fail where it has ended."""
        assert self._process is not None
        assert self._notify is not None
        loop = asyncio.get_running_loop()
        exited = asyncio.ensure_future(self._process.wait())
        said = asyncio.ensure_future(loop.sock_recv(self._notify, 4096))
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait({exited, said}, return_when=asyncio.FIRST_COMPLETED)
            assert said.done(), self.log
            return said.result().decode()
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
        self.send(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for the end of a daemon that was told to stop, and give its exit status."""
        process, self._process = self._process, None
        session, self._session = self._session, None
        assert process is not None
        async with asyncio.timeout(START_SECONDS):
            status = await process.wait()
        if session is not None:
            await session.close()
        if self._notify is not None:
            self._notify.close()
        return status

    async def close(self) -> None:
        """Kill the daemon if the test has left it running."""
        if self._process is not None:
            # One that could not start has gone by itself.
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            await self.ended()

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
            parsed = json.loads(text) if is_json and text else text
            return Answer(response.status, dict(response.headers), parsed)

    async def create(
        self, image_id: str | None, key: str = "", /, *, token: str | None = None, **spec: object
    ) -> Answer:
        """Ask for a disk: of the image, under ``<instance id>/<name>`` or a name that is new.

        ``token`` is that of the tenant for whom it is asked.
        """
        instance_id, _, name = (key or str(uuid.uuid4())).partition("/")
        body = spec if image_id is None else {"image_id": image_id, **spec}
        path = f"/v1/instances/{instance_id}/disks/{name or 'root'}"
        return await self.ask("PUT", path, body, headers=bearing(token))

    async def metric(self, name: str) -> float:
        """Read one metric, by its name and labels as they stand in the text."""
        text = (await self.ask("GET", "/metrics")).body
        lines = (line for line in text.splitlines() if line.startswith(f"cacheagent_{name} "))
        return float(next(lines).split()[-1])

    def write_config(self) -> None:
        """Write the configuration as TOML; JSON's strings, numbers and lists are TOML too."""
        always: dict[str, dict[str, object]] = {
            # Tests ask in a tight loop until something is so.
            "api": {"socket": str(self.api_socket), "requests_per_second": 0},
            "metrics": {"listen": ""},
            "storage": {"state_dir": str(self.state)},
            "eviction": {"min_free": 0},
        }
        sections = {
            name: {**always.get(name, {}), **self.settings.get(name, {})}
            for name in {**always, **self.settings}
        }
        lines = (
            line
            for name, values in sections.items()
            for line in (f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items()))
        )
        # In one step, as an editor does: a daemon that watches the file never sees half of it.
        new = self.config.with_suffix(".new")
        new.write_text("\n".join(lines))
        new.replace(self.config)


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


def bearing(token: str | None) -> dict[str, str]:
    """Give the header that carries a tenant's token; none without one."""
    return {} if token is None else {"X-Auth-Token": token}


def without_keystone(url: str, **sections: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Give the settings for an image service at ``url`` that asks for no token.

    No failure is remembered, so that a test need not wait before it asks again.
    """
    known = {"auth": "none", "endpoint": url, "failure_ttl": 0}
    glance = {**known, **sections.pop("glance", {})}
    return {"glance": glance, **sections}


def _notify_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    notify.bind(str(path))
    return notify
