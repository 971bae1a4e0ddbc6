"""How much memory the daemon takes."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.fakes import lying_glance
from tests.fakes.lying_glance import LyingGlance
from tests.needs import require

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
DATA = b"data" * (64 * MIB // 4)
HALF = len(DATA) // 2
CROWD = 1000
FOR_EACH = 64 << 10
"""Bytes that a connection, its request and its task may take, with room to spare."""


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Let this process, and the daemon that it starts, have a connection for everybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CROWD
    require(hard == resource.RLIM_INFINITY or hard >= wanted, f"{wanted} descriptors are needed")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(agent: Agent) -> int:
    """Give the bytes of memory that the daemon has now."""
    status = Path(f"/proc/{agent.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


async def halfway(agent: Agent, waiters: int) -> None:
    """Wait until so many requests wait for a download of which almost half has come."""
    figures = {"download_waiters": waiters, 'download_bytes_total{source="glance"}': HALF - 8 * MIB}
    for name, least in figures.items():
        while await agent.metric(name) < least:
            assert await agent.metric("downloads_in_progress") <= 1


@pytest.mark.usefixtures("descriptors")
async def test_crowd_takes_no_more_than_its_connections() -> None:
    """What a download holds in memory it holds once, were there one waiter or a thousand."""
    async with LyingGlance() as glance, agent_on(without_keystone(glance.url)) as agent:
        image_id = glance.add(DATA)
        glance.lie("data", lying_glance.silence(after=HALF))
        first = asyncio.ensure_future(agent.create(image_id))
        await halfway(agent, 1)
        alone = resident(agent)
        others = [asyncio.ensure_future(agent.create(image_id)) for _ in range(CROWD - 1)]
        try:
            await halfway(agent, CROWD)
            assert resident(agent) - alone < CROWD * FOR_EACH
            assert len(glance.calls("data")) == 1
        finally:
            for waiting in (first, *others):
                waiting.cancel()
            await asyncio.wait({first, *others})
