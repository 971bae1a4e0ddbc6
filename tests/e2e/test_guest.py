"""A real Debian on the agent's disks: Glance's API in front, QEMU behind."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from cacheagent import imageserver
from tests.e2e import qemu
from tests.e2e.agent import agent_on, without_keystone
from tests.guest import booted_guest, guest_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.agent import Agent


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """Run a daemon whose image service has the guest's image."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(guest_image(), folder / "debian.qcow2")
    async with (
        TestServer(imageserver.create_app(folder)) as server,
        agent_on(without_keystone(str(server.make_url("/")))) as running,
    ):
        yield running


async def image_id(agent: Agent) -> str:
    """Ask the image service for the id of its only image."""
    url = str(agent.settings["glance"]["endpoint"])
    async with aiohttp.ClientSession() as session, session.get(f"{url}v2/images") as reply:
        return str((await reply.json())["images"][0]["id"])


def digest_of(path: Path) -> str:
    """Give the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.guest
@pytest.mark.timeout(600)
async def test_guests_share_a_base_and_nothing_else(agent: Agent) -> None:
    """A Debian boots from an overlay and writes; another one and the base see nothing of it."""
    image = await image_id(agent)
    first = (await agent.create(image, size_bytes=1 << 30)).body
    second = (await agent.create(image, size_bytes=1 << 30)).body
    base = Path(first["base"]["path"])
    before = await asyncio.to_thread(digest_of, base)
    async with booted_guest(Path(first["path"])) as guest:
        assert await guest.run("blockdev --getsize64 /dev/vda") == f"{1 << 30}\n"
        await guest.run("echo written >/root/note && sync")
        refused = await agent.ask("DELETE", f"/v1/images/{image}")
        assert {user["kind"] for user in refused.body["users"]} == {"disk", "qemu"}
        await guest.power_off()
    async with booted_guest(Path(second["path"])) as guest:
        assert await guest.run("ls -A /root/note 2>/dev/null || echo absent") == "absent\n"
        await guest.power_off()
    async with booted_guest(Path(first["path"])) as guest:
        assert await guest.run("cat /root/note") == "written\n"
        await guest.power_off()
    assert await asyncio.to_thread(digest_of, base) == before
    for disk in (first, second):
        await qemu.check(disk["path"])
