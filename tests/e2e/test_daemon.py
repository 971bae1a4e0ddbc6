"""How the daemon starts and stops, as the service manager and its clients see it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sqlite3
import stat
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.e2e import qemu
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.e2e.command import cacheagent
from tests.e2e.gate import Gate, gated, making_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SIZE = 3 << 20
NOWHERE = without_keystone("http://127.0.0.1:9")
"""Settings for a daemon that needs no image service."""

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What the service manager does to hand over a socket: it becomes descriptor 3."""


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    """Run a daemon."""
    async with agent_on(NOWHERE) as running:
        yield running


@pytest.fixture
def stopped() -> Iterator[Agent]:
    """Give an agent that is not started yet."""
    with tempfile.TemporaryDirectory(prefix="ca-", ignore_cleanup_errors=True) as folder:
        yield Agent(Path(folder), NOWHERE)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Give a qemu-img that waits before it makes the file that overlays are cloned from."""
    with gated(tmp_path, making_of(SIZE)) as made:
        yield made


@pytest.fixture
async def slow(gate: Gate) -> AsyncIterator[Agent]:
    """Run a daemon with that qemu-img."""
    async with agent_on({**NOWHERE, "qemu": gate.settings}) as running:
        yield running


async def refused(agent: Agent) -> str:
    """Let a daemon fail to start, and give the one line that it says about it."""
    agent.write_config()
    done = await cacheagent("serve", "--config", agent.config)
    assert done.status == 2
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_start_and_stop_are_told_to_the_service_manager(
    agent: Agent, number: signal.Signals
) -> None:
    """The daemon is ready when it says so, says when it stops, and ends well, leaving no socket."""
    assert (await agent.ask("GET", "/readyz")).status == 200
    agent.send(number)
    assert await agent.told() == "STOPPING=1"
    assert await agent.ended() == 0
    assert not agent.api_socket.exists()
    assert "Traceback" not in agent.log


async def test_not_ready_before_files_and_catalog_agree(stopped: Agent, unused_port: int) -> None:
    """While it reconciles, the daemon is alive, not ready, and not to be asked for disks."""
    await stopped.start()
    assert await stopped.stop() == 0
    stopped.settings = {**NOWHERE, "metrics": {"listen": f"127.0.0.1:{unused_port}"}}
    url = f"http://127.0.0.1:{unused_port}"
    catalog = sqlite3.connect(stopped.state / "catalog.db", isolation_level=None)
    catalog.execute("BEGIN IMMEDIATE")
    starting = asyncio.ensure_future(stopped.start())
    try:
        assert await status_when_reachable(f"{url}/readyz", starting) == 503
        assert await status_when_reachable(f"{url}/healthz", starting) == 200
        assert not stopped.api_socket.exists()
        assert not starting.done()
        catalog.execute("ROLLBACK")
        await starting
        assert await status_when_reachable(f"{url}/readyz", starting) == 200
        assert (await stopped.ask("GET", "/readyz")).status == 200
    finally:
        catalog.close()
        await stopped.close()


@pytest.fixture
def unused_port() -> int:
    """Give a port of TCP that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def status_when_reachable(url: str, starting: asyncio.Future[None]) -> int:
    """Ask until somebody listens there, and give the status of the answer."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    return answer.status
            except aiohttp.ClientConnectorError:
                await asyncio.wait({starting}, timeout=0.02)
                if starting.done():
                    starting.result()


async def test_watchdog_is_fed(stopped: Agent) -> None:
    """A service manager that watches over the daemon hears from it again and again."""
    stopped.environment = {"WATCHDOG_USEC": "100000"}
    await stopped.start()
    try:
        assert [await stopped.told() for _ in range(3)] == ["WATCHDOG=1"] * 3
    finally:
        await stopped.close()


async def test_disk_that_is_being_made_at_the_stop_is_finished(slow: Agent, gate: Gate) -> None:
    """Whoever waits for a disk that is being made when the stop comes gets it."""
    creation = asyncio.ensure_future(slow.create(None, size_bytes=SIZE))
    await gate.reached()
    slow.send(signal.SIGTERM)
    assert await slow.told() == "STOPPING=1"
    gate.open()
    made = await creation
    assert (made.status, made.body["state"]) == (201, "ready")
    assert await slow.ended() == 0
    await qemu.check(made.body["path"])


async def test_disk_that_nobody_waits_for_is_finished_too(slow: Agent, gate: Gate) -> None:
    """A disk asked for without waiting is made before the daemon ends; nothing new is begun."""
    path = f"/v1/instances/{uuid.uuid4()}/disks/root"
    prefer = {"Prefer": "respond-async"}
    begun = await slow.ask("PUT", path, {"size_bytes": SIZE}, headers=prefer)
    assert (begun.status, begun.body["state"]) == (202, "pending")
    await gate.reached()
    slow.send(signal.SIGTERM)
    assert await slow.told() == "STOPPING=1"
    answer = await slow.create(None, size_bytes=SIZE)
    assert (answer.status, answer.problem) == (503, "shutting-down")
    assert (await slow.ask("GET", "/readyz")).status == 503
    gate.open()
    assert await slow.ended() == 0
    await slow.start()
    assert (await slow.ask("GET", path)).body["state"] == "ready"
    await qemu.check(begun.body["path"])


async def test_socket_of_a_daemon_that_died_is_replaced(agent: Agent) -> None:
    """After a crash nobody has to clean up before the next start."""
    await agent.kill()
    assert agent.api_socket.is_socket()
    await agent.start()
    assert (await agent.ask("GET", "/healthz")).status == 200


async def test_socket_of_a_living_daemon_is_left_alone(agent: Agent, tmp_path: Path) -> None:
    """A second daemon never takes the place of one that answers."""
    second = Agent(tmp_path, {**NOWHERE, "api": {"socket": str(agent.api_socket)}})
    assert await refused(second) == (
        f"Error: api.socket: {agent.api_socket}: another daemon answers there"
    )
    assert (await agent.ask("GET", "/healthz")).status == 200


async def test_what_is_no_socket_is_left_alone(stopped: Agent) -> None:
    """A file that has the socket's name by mistake is not removed."""
    stopped.api_socket.write_text("precious")
    assert await refused(stopped) == (
        f"Error: api.socket: {stopped.api_socket}: there is something else than a socket"
    )
    assert stopped.api_socket.read_text() == "precious"


@pytest.mark.parametrize(("settings", "mode"), [({}, 0o660), ({"socket_mode": "0600"}, 0o600)])
async def test_socket_has_its_mode(stopped: Agent, settings: dict[str, object], mode: int) -> None:
    """Who may speak to the daemon is a matter of the socket's permissions."""
    stopped.settings = {**NOWHERE, "api": settings}
    await stopped.start()
    try:
        assert stat.S_IMODE(stopped.api_socket.stat().st_mode) == mode
    finally:
        await stopped.close()


async def test_socket_of_the_service_manager_is_used(stopped: Agent) -> None:
    """A passed socket takes the place of our own, and outlives the daemon."""
    own = stopped.folder / "own.sock"
    stopped.settings = {**NOWHERE, "api": {"socket": str(own)}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stopped.api_socket))
        listener.listen()
        stopped.launcher = (sys.executable, "-c", HAND_OVER, str(listener.fileno()))
        stopped.descriptors = (listener.fileno(),)
        await stopped.start()
        try:
            assert (await stopped.ask("GET", "/v1/status")).status == 200
            assert not own.exists()
            assert await stopped.stop() == 0
        finally:
            await stopped.close()
    assert stopped.api_socket.is_socket()


async def test_whoever_connects_during_a_restart_is_answered_after_it(stopped: Agent) -> None:
    """With a socket of the service manager's nobody is refused while no daemon runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stopped.api_socket))
        listener.listen()
        stopped.launcher = (sys.executable, "-c", HAND_OVER, str(listener.fileno()))
        stopped.descriptors = (listener.fileno(),)
        await stopped.start()
        try:
            assert await stopped.stop() == 0
            reader, writer = await asyncio.open_unix_connection(str(stopped.api_socket))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            await stopped.start()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
        finally:
            await stopped.close()
