"""A daemon whose bases rot while nobody looks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.agent import Agent, agent_on, without_keystone

if TYPE_CHECKING:
    from tests.fakes.lying_glance import LyingGlance


MIB = 1 << 20
DATA = os.urandom(6 * MIB)
LONG_AGO = {"interval": "1s"}


def rot(base: Path) -> None:
    """Change one byte, as a device does: without anybody being told."""
    base.chmod(0o600)
    with base.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes([DATA[5 * MIB] ^ 0xFF]))


async def base_of(agent: Agent, image_id: str) -> Path:
    """Make a disk, and give the path of its base."""
    answer = await agent.create(image_id)
    assert answer.status == 201
    return Path(answer.body["base"]["path"])


async def until_sound(agent: Agent, base: Path) -> None:
    """Wait until the base has the bytes that it should have."""
    async with asyncio.timeout(30):
        while not base.exists() or base.read_bytes() != DATA:
            await agent.ask("GET", "/healthz")


async def test_base_that_rotted_is_there_anew_before_anybody_reads_it(glance: LyingGlance) -> None:
    """The daemon finds it by itself, and the disk that needs it has it again."""
    image_id = glance.add(DATA)
    settings = without_keystone(glance.url, scrub=LONG_AGO)
    async with agent_on(settings) as agent:
        base = await base_of(agent, image_id)
        assert await agent.stop() == 0
        rot(base)
        await agent.start()
        await until_sound(agent, base)
        assert len(glance.calls("data")) == 2
        assert await agent.metric("scrub_failures_total") == 1
        assert await agent.stop() == 0
