"""Disks of every kind, asked for at the API of a real daemon and looked at with QEMU's tools."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from cacheagent import imageserver
from tests.e2e import qemu
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.images import real_images

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
CROWD = 200


class Service:
    """The embedded image service on a folder of the test."""

    def __init__(self, folder: Path, server: BaseTestServer, app: web.Application) -> None:
        self.folder = folder
        self._server = server
        self._app = app

    @property
    def url(self) -> str:
        """Where it answers."""
        return str(self._server.make_url("/"))

    @property
    def downloads(self) -> int:
        """How many downloads it has served."""
        return sum(self._app[imageserver.DOWNLOADS].values())


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Serve a raw image, and the same disk as compressed qcow2."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = real_images()
    for name in ("disk.raw", "disk-v2-compressed.qcow2"):
        shutil.copy(images[name].path, folder / name)
    app = imageserver.create_app(folder)
    async with TestServer(app) as server:
        yield Service(folder, server, app)


@pytest.fixture
async def agent(service: Service) -> AsyncIterator[Agent]:
    """Run a daemon on that service."""
    async with agent_on(without_keystone(service.url)) as running:
        yield running


async def image_named(service: Service, name: str) -> str:
    """Ask the service for the id of an image."""
    async with aiohttp.ClientSession() as session, session.get(f"{service.url}v2/images") as reply:
        listed = (await reply.json())["images"]
    return next(str(image["id"]) for image in listed if image["name"] == name)


@pytest.fixture
async def raw(service: Service) -> str:
    """Give the id of the raw image."""
    return await image_named(service, "disk")


@pytest.fixture
async def qcow2(service: Service) -> str:
    """Give the id of the qcow2 image."""
    return await image_named(service, "disk-v2-compressed")


async def test_crowd_shares_one_download(agent: Agent, service: Service, qcow2: str) -> None:
    """200 requests at once for disks of one image cost one download, and all disks are sound."""
    answers = await asyncio.gather(*(agent.create(qcow2) for _ in range(CROWD)))
    assert [answer.status for answer in answers] == [201] * CROWD
    assert service.downloads == 1
    assert sorted({answer.body["cache"] for answer in answers}) == ["joined", "miss"]
    base = answers[0].body["base"]["path"]
    paths = {answer.body["path"] for answer in answers}
    assert len(paths) == CROWD
    for path in paths:
        overlay, backing = await qemu.chain(path)
        assert (overlay["format"], overlay["full-backing-filename"]) == ("qcow2", base)
        assert overlay["backing-filename-format"] == backing["format"] == "raw"
        assert overlay["virtual-size"] == backing["virtual-size"] == 64 * MIB
        await qemu.check(path)


async def test_same_request_answers_with_the_same_disk(agent: Agent, raw: str) -> None:
    """A scheduler that lost the answer can ask again, and loses nothing that a guest wrote."""
    key = f"{uuid.uuid4()}/root"
    made = await agent.create(raw, key, size_bytes=128 * MIB)
    path = made.body["path"]
    await qemu.write(path, "qcow2", b"guest")
    again = await agent.create(raw, key, size_bytes=128 * MIB)
    assert (made.status, again.status) == (201, 200)
    assert {**again.body, "cache": None} == {**made.body, "cache": None}
    assert (await qemu.content(path, "qcow2", MIB))[:5] == b"guest"


async def test_overlays_of_one_base_do_not_see_each_other(agent: Agent, raw: str) -> None:
    """What one guest writes reaches neither another guest nor the base."""
    first, second = [(await agent.create(raw)).body for _ in range(2)]
    await qemu.write(first["path"], "qcow2", b"secret")
    original = real_images()["disk.raw"].path.read_bytes()
    assert (await qemu.content(second["path"], "qcow2", 64 * MIB)) == original
    assert Path(first["base"]["path"]).read_bytes() == original


@pytest.mark.parametrize("base_format", ["raw", "keep"])
@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
async def test_full_copy_stands_alone(
    service: Service, qcow2: str, base_format: str, disk_format: str
) -> None:
    """A full copy has the image's content, its own size and no backing file, whatever the base."""
    settings = without_keystone(service.url, images={"base_format": base_format})
    async with agent_on(settings) as agent:
        spec: dict[str, Any] = {"format": disk_format, "mode": "full", "size_bytes": 96 * MIB}
        disk = (await agent.create(qcow2, **spec)).body
        (alone,) = await qemu.chain(disk["path"])
        assert (alone["format"], alone["virtual-size"]) == (disk_format, 96 * MIB)
        original = real_images()["disk.raw"].path.read_bytes()
        assert await qemu.content(disk["path"], disk_format, 64 * MIB) == original
        expected = "raw" if base_format == "raw" else "qcow2"
        assert [name.rpartition(".")[2] for name in agent.bases()] == [expected, "json"]
        # It does not hold the base it came from.
        assert (await agent.ask("DELETE", f"/v1/images/{qcow2}")).status == 204


async def test_keep_leaves_the_image_as_it_came(service: Service, qcow2: str) -> None:
    """With ``keep`` a base is byte for byte the image that Glance has."""
    settings = without_keystone(service.url, images={"base_format": "keep"})
    async with agent_on(settings) as agent:
        disk = (await agent.create(qcow2)).body
        image = service.folder / "disk-v2-compressed.qcow2"
        assert Path(disk["base"]["path"]).read_bytes() == image.read_bytes()
        overlay, backing = await qemu.chain(disk["path"])
        assert overlay["backing-filename-format"] == backing["format"] == "qcow2"
        await qemu.check(disk["path"])


async def test_equal_content_is_stored_and_downloaded_once(
    agent: Agent, service: Service, raw: str
) -> None:
    """A second image with the same bytes costs neither a download nor room."""
    shutil.copy(service.folder / "disk.raw", service.folder / "copy.raw")
    first = (await agent.create(raw)).body
    second = (await agent.create(await image_named(service, "copy"))).body
    assert second["base"] == first["base"]
    assert service.downloads == 1
    assert (await agent.ask("GET", "/v1/status")).body["counts"]["bases"] == 1


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "vfat", "swap"])
@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
async def test_blank_disk_with_a_file_system(
    agent: Agent, filesystem: str, disk_format: str
) -> None:
    """A blank disk comes formatted and labelled as it was asked for."""
    spec: dict[str, Any] = {"size_bytes": 512 * MIB, "filesystem": filesystem, "label": "DATA"}
    answer = await agent.create(None, format=disk_format, **spec)
    assert (answer.status, answer.body["cache"]) == (201, "blank")
    flat = f"{answer.body['path']}.flat"
    await qemu.qemu_img("convert", "-f", disk_format, "-O", "raw", answer.body["path"], flat)
    command = ["blkid", "--probe", "--output", "export", flat]
    done = await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.PIPE)
    seen = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert (seen["TYPE"], seen["LABEL"]) == (filesystem, "DATA")


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
async def test_blank_disk_without_a_file_system(agent: Agent, disk_format: str) -> None:
    """A blank disk has its size, takes no room, and an odd size is rounded up."""
    answer = await agent.create(None, format=disk_format, size_bytes=MIB + 1)
    (blank,) = await qemu.chain(answer.body["path"])
    assert answer.body["virtual_size_bytes"] == blank["virtual-size"] == MIB + 512
    assert Path(answer.body["path"]).stat().st_blocks * 512 < MIB


async def test_disk_beyond_all_measure_is_a_mistake_of_the_request(agent: Agent) -> None:
    """A size that no file can have is told by the field, and leaves nothing behind."""
    answer = await agent.create(None, format="raw", size_bytes=(1 << 50) + 1)
    assert (answer.status, answer.problem) == (400, "invalid-request")
    assert answer.body["errors"][0]["field"] == "size_bytes"
    assert list((agent.state / "instances").iterdir()) == []


async def test_deleted_instance_leaves_nothing(agent: Agent, raw: str) -> None:
    """All disks of an instance go at once, and a second time is no error."""
    instance_id = str(uuid.uuid4())
    for name in ("root", "ephemeral0"):
        await agent.create(raw, f"{instance_id}/{name}")
    await agent.create(None, f"{instance_id}/swap", size_bytes=MIB)
    shown = (await agent.ask("GET", f"/v1/instances/{instance_id}")).body
    assert {disk["name"] for disk in shown["disks"]} == {"root", "ephemeral0", "swap"}
    for _ in range(2):
        assert (await agent.ask("DELETE", f"/v1/instances/{instance_id}")).status == 204
    assert list((agent.state / "instances").iterdir()) == []


async def test_disk_that_vanished_is_made_again(agent: Agent, raw: str) -> None:
    """A disk that somebody removed behind the agent's back can be asked for again."""
    key = f"{uuid.uuid4()}/root"
    path = Path((await agent.create(raw, key)).body["path"])
    path.unlink()
    assert (await agent.create(raw, key)).status == 201
    assert path.exists()


async def test_progress_is_told_while_an_image_comes(agent: Agent, qcow2: str) -> None:
    """A prefetch without waiting answers at once, and can be followed until it is ready."""
    begun = await agent.ask("PUT", f"/v1/images/{qcow2}", {})
    assert begun.status == 202
    states = [begun.body["state"]]
    while states[-1] != "ready":
        image = (await agent.ask("GET", f"/v1/images/{qcow2}")).body
        assert image["progress"] is None or image["progress"]["bytes_done"] >= 0
        states.append(image["state"])
    assert set(states) <= {"queued", "downloading", "converting", "ready"}
    assert (await agent.ask("PUT", f"/v1/images/{qcow2}", {})).status == 200


async def test_pinned_image_is_not_evicted(agent: Agent, raw: str) -> None:
    """A pin holds a base that nothing else uses, until it is taken away."""
    await agent.ask("PUT", f"/v1/images/{raw}", {"wait": True, "pin": True})
    refused = await agent.ask("DELETE", f"/v1/images/{raw}")
    assert (refused.status, refused.body["users"][0]["kind"]) == (409, "pin")
    assert (await agent.ask("DELETE", f"/v1/images/{raw}/pin")).status == 204
    assert (await agent.ask("DELETE", f"/v1/images/{raw}")).status == 204


async def test_metrics_tell_what_happened(agent: Agent, raw: str) -> None:
    """Hits, misses, bytes downloaded and bytes saved can be read from the metrics."""
    for _ in range(3):
        await agent.create(raw)
    assert await agent.metric('requests_total{operation="disk_create",result="miss"}') == 1
    assert await agent.metric('requests_total{operation="disk_create",result="hit"}') == 2
    assert await agent.metric('download_bytes_total{source="glance"}') == 64 * MIB
    assert await agent.metric("bytes_saved_total") == 2 * 64 * MIB
    assert await agent.metric('disks{mode="overlay"}') == 3
    assert await agent.metric("bases_in_use") == 1
