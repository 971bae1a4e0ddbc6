"""A real daemon that refuses images: what its operator sees of them, and what they may cost."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.e2e.command import cacheagent
from tests.e2e.filesystem import Filler, agent_on_filesystem
from tests.needs import require_programs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.agent import Answer
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
SYSTEM = 320 * MIB
"""The smallest XFS is 300 MiB."""


async def pull(agent: Agent, image_id: str) -> Answer:
    """Bring an image in, and wait for it."""
    return await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})


async def with_backing_file(folder: Path) -> bytes:
    """Make a qcow2 that names a file of the host (CVE-2015-5163)."""
    require_programs("qemu-img")
    path = folder / "thief.qcow2"
    words = ("create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", str(path), "1M")
    process = await asyncio.create_subprocess_exec("qemu-img", *words)
    assert await process.wait() == 0
    return await asyncio.to_thread(path.read_bytes)


def quarantined(agent: Agent) -> list[str]:
    """Name what lies in quarantine."""
    return sorted(path.name for path in (agent.state / "quarantine").iterdir())


async def test_a_refused_image_is_named_wherever_an_operator_looks(
    glance: LyingGlance, tmp_path: Path
) -> None:
    """The answer, the status, the command line and the metrics tell of it; so after a crash."""
    image_id = glance.add(await with_backing_file(tmp_path), disk_format="qcow2")
    async with agent_on(without_keystone(glance.url)) as agent:
        answer = await pull(agent, image_id)
        assert (answer.status, answer.problem) == (422, "image-unacceptable")
        assert answer.body["reason"] == "backing-file"
        assert agent.bases() == agent.left_in_ingest() == []
        await agent.kill()
        await agent.start()
        told = (await agent.ask("GET", "/v1/status")).body["quarantine"]
        (file,) = told["files"]
        assert (file["image_id"], file["reason"]) == (image_id, "backing-file")
        assert file["detail"] == answer.body["detail"]
        assert quarantined(agent) == [file["name"], f"{file['name']}.json"]
        assert told["count"] == await agent.metric("quarantine_files") == 1
        assert told["bytes"] == await agent.metric("quarantine_bytes") == file["size_bytes"]
        shown = await cacheagent("status", "--socket", agent.api_socket)
        assert "refused" in shown.stdout
        assert image_id in shown.stdout
        assert file["detail"] in shown.stdout


async def test_the_bound_holds_whatever_is_refused(glance: LyingGlance) -> None:
    """A tenant with many bad images fills no more than the operator gives; asked again or not."""
    bound = {"max_size": 3 * MIB}
    async with agent_on(without_keystone(glance.url, quarantine=bound)) as agent:
        images = [glance.add(os.urandom(MIB), disk_format="vhdx") for _ in range(6)]
        told: dict[str, Any] = {}
        for image_id in (*images, images[-1]):
            assert (await pull(agent, image_id)).status == 422
            told = (await agent.ask("GET", "/v1/status")).body["quarantine"]
            assert told["bytes"] <= told["max_size_bytes"] == bound["max_size"]
        assert told["count"] in {2, 3}
        assert images[-1] in {file["image_id"] for file in told["files"]}
        large = glance.add(os.urandom(4 * MIB), disk_format="vhdx")
        detail = (await pull(agent, large)).body["detail"]
        assert detail.endswith("the file was not kept: quarantine.max_size is 3.0 MiB")
        assert large not in "".join(quarantined(agent))
        assert agent.left_in_ingest() == []


@pytest.mark.parametrize("kind", ["xfs", "ext4"])
async def test_on_a_full_file_system_the_quarantine_yields(glance: LyingGlance, kind: str) -> None:
    """What was refused makes room for what is good, and no base goes for it."""
    eviction = {"min_age": 0, "min_free": 0, "interval": "1h", "high_watermark": 100}
    settings = without_keystone(glance.url, eviction=eviction)
    async with agent_on_filesystem(kind, SYSTEM, settings) as agent:
        assert (await pull(agent, glance.add(os.urandom(16 * MIB)))).status == 200
        before = agent.bases()
        bad = glance.add(os.urandom(48 * MIB), disk_format="vhdx")
        assert (await pull(agent, bad)).status == 422
        assert len(quarantined(agent)) == 2
        filler = Filler(agent.state)
        await asyncio.to_thread(filler.fill)
        assert (await pull(agent, glance.add(os.urandom(16 * MIB)))).status == 200
        assert quarantined(agent) == []
        assert set(before) < set(agent.bases())
