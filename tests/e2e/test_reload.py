"""A running daemon follows its configuration, as far as it can without a restart."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.e2e.gate import gated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
JSON = {"format": "json"}


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on it that logs as JSON."""
    async with agent_on(without_keystone(glance.url, log=JSON)) as running:
        yield running


def rewrite(agent: Agent, **sections: dict[str, object]) -> None:
    """Write another configuration into the file of a running daemon."""
    agent.settings = {**agent.settings, **sections}
    agent.write_config()


async def test_changed_file_is_taken_over(agent: Agent, glance: LyingGlance) -> None:
    """A limit that is lowered holds from then on, and the log says what changed."""
    first, second = (glance.add(bytes([n]) * 2 * MIB) for n in range(2))
    assert (await agent.create(first)).status == 201
    rewrite(agent, images={"max_size": MIB})
    reloaded = await agent.logged("reloaded")
    assert (reloaded["changed"], reloaded["needs_restart"]) == (["images.max_size"], [])
    answer = await agent.create(second)
    assert (answer.status, answer.problem) == (422, "image-unacceptable")
    assert (await agent.create(first)).status == 201


async def test_what_needs_a_restart_is_named(agent: Agent) -> None:
    """Of two changed keys one is taken over, and the other one waits for the next start."""
    rewrite(agent, log={**JSON, "level": "debug"}, qemu={"convert_threads": 1})
    reloaded = await agent.logged("reloaded")
    assert reloaded["changed"] == ["log.level"]
    assert reloaded["needs_restart"] == ["qemu.convert_threads"]
    # Somebody who looks is told of at the level of debug only.
    assert (await agent.logged("request"))["level"] == "debug"


async def test_signal_asks_for_a_reload(agent: Agent) -> None:
    """``systemctl reload`` has the file read again, and the daemon goes on."""
    agent.send(signal.SIGHUP)
    assert (await agent.told()).startswith("RELOADING=1\nMONOTONIC_USEC=")
    reloaded = await agent.logged("reloaded")
    assert (reloaded["changed"], reloaded["needs_restart"]) == ([], [])
    while (told := await agent.told()) != "READY=1":
        assert told.startswith("STATUS=")
    assert (await agent.ask("GET", "/readyz")).status == 200


async def test_broken_file_changes_nothing(agent: Agent, glance: LyingGlance) -> None:
    """A mistake in the file is told by log and metric, and everything stays as it was."""
    assert await agent.metric("config_reload_success") == 1
    rewrite(agent, images={"max_size": MIB, "max_sise": 1})
    kept = await agent.logged("the configuration is kept as it was")
    assert kept["level"] == "error"
    assert "images.max_sise: unknown key" in kept["why"]
    assert await agent.metric("config_reload_success") == 0
    assert (await agent.create(glance.add(b"x" * 2 * MIB))).status == 201
    rewrite(agent, images={"max_size": MIB})
    assert (await agent.logged("reloaded"))["changed"] == ["images.max_size"]
    assert await agent.metric("config_reload_success") == 1


async def test_file_written_in_place_is_noticed(agent: Agent) -> None:
    """An editor that does not rename is as good as one that does."""
    with agent.config.open("a") as file:
        file.write("\n[eviction.typo]\n")
    assert "eviction" in (await agent.logged("the configuration is kept as it was"))["why"]


async def test_change_during_the_start_is_not_lost(tmp_path: Path) -> None:
    """A start takes long where there is much to reconcile; a reload asked for then comes after."""
    settings = without_keystone("http://127.0.0.1:9", log=JSON)
    with gated(tmp_path, "--version") as gate, tempfile.TemporaryDirectory(prefix="ca-") as folder:
        agent = Agent(Path(folder), {**settings, "qemu": gate.settings})
        starting = asyncio.ensure_future(agent.start())
        try:
            await gate.reached()
            agent.send(signal.SIGHUP)
            rewrite(agent, images={"max_size": MIB})
            gate.open()
            await starting
            assert (await agent.logged("reloaded"))["changed"] == ["images.max_size"]
        finally:
            await agent.close()
