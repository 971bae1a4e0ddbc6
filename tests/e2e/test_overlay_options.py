"""Options of overlays: whatever they are, QEMU's tools and the agent know the disks again."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import qemu
from tests.e2e.agent import agent_on, without_keystone
from tests.fakes.images import made_by_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.agent import Agent
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
WRITTEN = b"guest" * 100

OPTIONS: dict[str, dict[str, Any]] = {
    "": {"cluster-size": 65536, "extended-l2": False},
    "cluster_size=512": {"cluster-size": 512, "extended-l2": False},
    "cluster_size=2M": {"cluster-size": 2 * MIB, "extended-l2": False},
    "cluster_size=64k,extended_l2=on": {"cluster-size": 65536, "extended-l2": True},
    "cluster_size=128k,extended_l2=on": {"cluster-size": 131072, "extended-l2": True},
    "cluster_size=2M,extended_l2=on": {"cluster-size": 2 * MIB, "extended-l2": True},
    "compat=0.10": {"cluster-size": 65536, "extended-l2": False},
}
"""Options of ``[overlay]``, and what ``qemu-img info`` says of a disk that was made with them."""


async def made_with(path: str) -> dict[str, Any]:
    """Say which clusters a disk has."""
    disk = (await qemu.chain(path))[0]
    more = disk["format-specific"]["data"]
    return {"cluster-size": disk["cluster-size"], "extended-l2": more.get("extended-l2", False)}


async def restart(agent: Agent, *, catalog: bool = True) -> None:
    """Stop the daemon, delete its catalog if it is not to keep it, and start it."""
    assert await agent.stop() == 0
    if not catalog:
        for path in agent.state.glob("catalog.db*"):
            await asyncio.to_thread(path.unlink)
    await agent.start()


@pytest.mark.parametrize("options", OPTIONS)
async def test_agent_knows_its_disks_again(glance: LyingGlance, options: str) -> None:
    """Without its catalog the agent reads from a disk which base it needs, and its size."""
    image = glance.add(os.urandom(MIB), disk_format="raw")
    settings = without_keystone(glance.url, overlay={"options": options})
    async with agent_on(settings) as agent:
        disk = (await agent.create(image, size_bytes=4 * MIB)).body
        blank = (await agent.create(None, size_bytes=4 * MIB)).body
        for each in (disk, blank):
            assert await made_with(each["path"]) == OPTIONS[options]
            await qemu.write(each["path"], "qcow2", WRITTEN)
        await restart(agent, catalog=False)
        for each in (disk, blank):
            path = f"/v1/instances/{each['instance_id']}/disks/root"
            told = (await agent.ask("GET", path)).body
            assert (told["virtual_size_bytes"], told["base"]) == (4 * MIB, each["base"])
        assert (await agent.ask("DELETE", f"/v1/images/{image}")).problem == "base-in-use"
        assert (await agent.create(image, size_bytes=4 * MIB)).body["cache"] == "hit"


@pytest.mark.parametrize("options", OPTIONS)
async def test_tools_of_qemu_work_on_the_disks(
    glance: LyingGlance, tmp_path: Path, options: str
) -> None:
    """A disk can be checked, moved to a copy of its base, made independent, and committed to."""
    content = os.urandom(MIB)
    image = glance.add(content, disk_format="raw")
    settings = without_keystone(glance.url, overlay={"options": options})
    async with agent_on(settings) as agent:
        disk = (await agent.create(image)).body
        path, backing = disk["path"], str(tmp_path / "copy.raw")
        await qemu.write(path, "qcow2", WRITTEN)
        expected = WRITTEN + content[len(WRITTEN) :]
        snapshot = str(tmp_path / "snapshot.qcow2")
        await qemu.qemu_img("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", snapshot)
        await qemu.write(snapshot, "qcow2", b"later")
        await qemu.qemu_img("commit", "-q", "-f", "qcow2", snapshot)
        expected = b"later" + expected[5:]
        assert await qemu.content(path, "qcow2", MIB) == expected
        await asyncio.to_thread(shutil.copyfile, disk["base"]["path"], backing)
        for how in (("-u",), ()):
            for name in (backing, disk["base"]["path"]):
                await qemu.qemu_img("rebase", "-f", "qcow2", *how, "-F", "raw", "-b", name, path)
                await qemu.check(path)
                assert await qemu.content(path, "qcow2", MIB) == expected
        await qemu.qemu_img("rebase", "-f", "qcow2", "-b", "", path)
        await qemu.check(path)
        assert await qemu.content(path, "qcow2", MIB) == expected


@pytest.mark.parametrize("newer", ["raw", "keep"])
async def test_other_defaults_leave_alone_what_is_here(
    glance: LyingGlance, tmp_path: Path, newer: str
) -> None:
    """A daemon that starts with other options goes on with the bases and disks of the old ones."""
    older = {"raw": "keep", "keep": "raw"}[newer]
    old, new = "", "cluster_size=128k,extended_l2=on"
    qcow2 = made_by_qemu(tmp_path / "image", "qcow2", "", os.urandom(MIB)).read_bytes()
    image = glance.add(qcow2, disk_format="qcow2")
    key = f"{uuid.uuid4()}/root"
    settings = without_keystone(glance.url, images={"base_format": older}, overlay={"options": old})
    async with agent_on(settings) as agent:
        first = (await agent.create(image, key)).body
        agent.settings = {
            **settings,
            "images": {"base_format": newer},
            "overlay": {"options": new},
        }
        await restart(agent)
        again = await agent.create(image, key)
        assert (again.status, again.body["path"]) == (200, first["path"])
        second = await agent.create(image)
        assert (second.body["cache"], second.body["base"]) == ("hit", first["base"])
        for disk, options in ((first, old), (second.body, new)):
            await qemu.check(disk["path"])
            assert await made_with(disk["path"]) == OPTIONS[options]
        assert (await agent.ask("POST", f"/v1/images/{image}/verify")).status == 200
        assert len(glance.calls("data")) == 1
        assert await agent.metric("unknown_files") == 0
