"""A real daemon, whose qemu-img is shut in."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import SandboxKind
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.needs import require_programs
from tests.test_process import wait_for_ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheagent.sandbox import Sandbox
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20

SLOW = """#!/bin/sh
# At 64 KiB a second a conversion would be busy for minutes.
[ "$1" = convert ] || exec qemu-img "$@"
shift
exec qemu-img convert -r 64k "$@"
"""


@pytest.fixture
async def agent(glance: LyingGlance, sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Agent]:
    """Run a daemon that converts slowly."""
    slow = tmp_path / "slow-qemu-img"
    slow.write_text(SLOW)
    slow.chmod(0o755)
    qemu = {
        "qemu_img": str(slow),
        "sandbox": str(sandbox.kind),
        "sandbox_socket": str(sandbox.socket),
    }
    log = {"format": "json"}
    async with agent_on(without_keystone(glance.url, qemu=qemu, log=log)) as running:
        yield running


@pytest.fixture
def qcow2(tmp_path: Path) -> bytes:
    """Give an image that has to be converted."""
    require_programs("qemu-img")
    raw, made = tmp_path / "raw", tmp_path / "made"
    raw.write_bytes(os.urandom(16 * MIB))
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
    subprocess.run(words, check=True)
    return made.read_bytes()


async def _converting(agent: Agent, image_id: str) -> list[int]:
    """Wait until a conversion is under way; give a descriptor for each process that is of it."""
    done = 0
    while not done:
        image = (await agent.ask("GET", f"/v1/images/{image_id}")).body
        if image.get("state") == "converting":
            done = image["progress"]["bytes_done"]
    # Bubblewrap, its first process inside, and qemu-img: all have the target among their words.
    found = await asyncio.to_thread(_pids_with, str(agent.state / "ingest" / image_id))
    assert len(found) >= 3
    return [os.pidfd_open(pid) for pid in found]


def _pids_with(word: str) -> list[int]:
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [pid for pid in pids if word in _words(pid)]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


async def test_status_metrics_and_log_say_what_is_in_force(agent: Agent, sandbox: Sandbox) -> None:
    """An operator sees how qemu-img is shut in, wherever he looks."""
    assert (await agent.ask("GET", "/v1/status")).body["sandbox"] == sandbox.kind
    for kind in SandboxKind:
        in_force = float(kind is sandbox.kind)
        assert await agent.metric(f'sandbox{{kind="{kind}"}}') == in_force
    (line,) = agent.lines("what qemu-img is shut in by")
    assert line["sandbox"] == sandbox.kind


async def test_a_killed_daemon_leaves_no_qemu_img_behind(
    agent: Agent, glance: LyingGlance, qcow2: bytes
) -> None:
    """The kernel ends what the daemon cannot end any more."""
    image_id = glance.add(qcow2, disk_format="qcow2")
    await agent.ask("PUT", f"/v1/images/{image_id}", {})
    pidfds = await _converting(agent, image_id)
    await agent.kill()
    assert await asyncio.to_thread(wait_for_ends, pidfds)


async def test_a_request_that_goes_away_takes_its_qemu_img_with_it(
    agent: Agent, glance: LyingGlance, qcow2: bytes
) -> None:
    """When the last one who waits hangs up, nothing goes on for nobody."""
    image_id = glance.add(qcow2, disk_format="qcow2")
    request = asyncio.ensure_future(agent.create(image_id))
    pidfds = await _converting(agent, image_id)
    request.cancel()
    assert await asyncio.to_thread(wait_for_ends, pidfds)
    assert (await agent.ask("GET", "/healthz")).status == 200
