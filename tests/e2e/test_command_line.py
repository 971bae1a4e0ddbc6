"""The commands, as a person or a script runs them, and the library that schedulers import."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import aiohttp
import pytest

from cacheagent.client import AsyncClient, Client
from cacheagent.errors import RequestFailedError
from tests.e2e import qemu
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.e2e.command import Finished, cacheagent
from tests.fakes import lying_glance
from tests.images import real_images

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
DONE, REFUSED, USAGE, UNREACHABLE = range(4)


@pytest.fixture
async def image_service(tmp_path: Path) -> AsyncIterator[str]:
    """Start ``cacheagent imageserver`` on a folder with two images, and give its URL."""
    for name in ("disk.raw", "disk-stream.vmdk"):
        shutil.copy(real_images()[name].path, tmp_path / name)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheagent", "imageserver", tmp_path),
        *("--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        said = (await process.stdout.readline()).decode()
        assert said.startswith("serving at http://127.0.0.1:")
        yield said.split()[-1]
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def agent(image_service: str) -> AsyncIterator[Agent]:
    """Run a daemon on that image service."""
    async with agent_on(without_keystone(image_service)) as running:
        yield running


async def run(agent: Agent, *words: str) -> Finished:
    """Run a client command against the daemon."""
    return await cacheagent(*words, environment={"CACHEAGENT_SOCKET": str(agent.api_socket)})


async def image_ids(url: str) -> dict[str, str]:
    """Ask the image service for the ids of its images, by name."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v2/images") as answer:
        return {image["name"]: image["id"] for image in (await answer.json())["images"]}


async def test_disk_from_image_to_eviction(agent: Agent, image_service: str) -> None:
    """A person pulls an image, makes a disk of it by name, and cleans up, command by command."""
    image_id = (await image_ids(image_service))["disk-stream"]
    instance = str(uuid.uuid4())
    pulled = await run(agent, "image", "pull", image_id)
    assert (pulled.status, pulled.stderr) == (DONE, "")
    assert "disk-stream" in pulled.stdout
    made = await run(
        *(agent, "disk", "create", instance, "root"),
        *("--image", "disk-stream", "--size", "128MiB", "--json"),
    )
    assert (made.status, made.json["cache"], made.json["image_id"]) == (DONE, "hit", image_id)
    overlay, base = await qemu.chain(made.json["path"])
    assert (overlay["virtual-size"], base["virtual-size"]) == (128 * MIB, 64 * MIB)
    shown = await run(agent, "disk", "show", instance, "root")
    assert made.json["path"] in shown.stdout
    assert "128.0 MiB" in shown.stdout
    refused = await run(agent, "image", "evict", "disk-stream")
    assert (refused.status, refused.stdout) == (REFUSED, "")
    assert instance in refused.stderr
    gone = await run(agent, "disk", "delete", instance, "root")
    assert (gone.status, gone.stdout) == (DONE, f"disk root of instance {instance}: gone\n")
    assert (await run(agent, "image", "pin", "disk-stream")).status == DONE
    pinned = await run(agent, "image", "evict", "disk-stream")
    assert (pinned.status, "image unpin" in pinned.stderr) == (REFUSED, True)
    assert (await run(agent, "image", "unpin", image_id)).status == DONE
    evicted = await run(agent, "image", "evict", "disk-stream")
    assert (evicted.status, evicted.stdout) == (DONE, f"image {image_id} evicted\n")
    assert agent.bases() == []


async def test_lists_and_status_for_people_and_programs(agent: Agent, image_service: str) -> None:
    """Tables have a line for each image and disk, and JSON is what the API says."""
    ids = await image_ids(image_service)
    instance = str(uuid.uuid4())
    for name, image_id in ids.items():
        words = ("disk", "create", instance, name.replace("disk", "d"), "--image", image_id)
        assert (await run(agent, *words, "--format", "raw", "--mode", "full")).status == DONE
    images = await run(agent, "image", "list")
    assert [line.split()[:3] for line in images.stdout.splitlines()[1:]] == [
        [ids[name], name, "ready"] for name in sorted(ids, key=ids.__getitem__)
    ]
    disks = await run(agent, "disk", "list", "--instance", instance)
    assert [line.split()[:3] for line in disks.stdout.splitlines()[1:]] == [
        [instance, name, "ready"] for name in ("d", "d-stream")
    ]
    commands: list[tuple[tuple[str, ...], str, str | None]] = [
        (("image", "list"), "/v1/images", "images"),
        (("image", "show", "disk"), f"/v1/images/{ids['disk']}", None),
        (("disk", "show", instance, "d"), f"/v1/instances/{instance}/disks/d", None),
        (("disk", "list"), f"/v1/instances/{instance}", "disks"),
    ]
    for command, path, member in commands:
        answer = (await agent.ask("GET", path)).body
        shown = await run(agent, *command, "--json")
        assert shown.json == (answer[member] if member else answer)
    status = await run(agent, "status", "--json")
    assert status.json["counts"] == (await agent.ask("GET", "/v1/status")).body["counts"]
    told = (await run(agent, "status")).stdout
    assert "reachable" in told
    assert "reconciler ran" in told


async def test_name_that_two_images_have_is_no_name(glance: LyingGlance) -> None:
    """Where a name means two images the command does nothing, and lists their ids."""
    ids = [glance.add(bytes([n]) * 4096, name="debian") for n in range(2)]
    async with agent_on(without_keystone(glance.url)) as agent:
        for image_id in ids:
            assert (await run(agent, "image", "pull", image_id)).status == DONE
        refused = await run(agent, "image", "evict", "debian")
        assert refused.status == USAGE
        assert sorted(refused.stderr.splitlines()[-2:]) == sorted(ids)
        assert len(agent.bases()) == 2 * len(ids)
        unknown = await run(agent, "image", "show", "centos")
        assert unknown.status == REFUSED
        assert "give its id" in unknown.stderr


async def test_ends_tell_what_happened(agent: Agent) -> None:
    """A script tells a refusal from a mistake, and both from a daemon that is not there."""
    nobody = str(uuid.uuid4())
    for words, status, sentence in (
        (("disk", "list"), DONE, ""),
        (("disk", "delete", nobody, "root"), DONE, ""),
        (("disk", "show", nobody, "root"), REFUSED, "Error: disk-not-found (404): instance "),
        (("disk", "create", "not-a-uuid", "root", "--size", "1MiB"), REFUSED, "instance_id: "),
        (("image", "pull", nobody), REFUSED, f"(404): image {nobody} is not known to Glance"),
        (("disk", "create", nobody, "root", "--size", "many"), USAGE, "Error: Invalid value"),
        (("disk", "delete", nobody), USAGE, "Error: give the name of a disk, or --all"),
        (("status", "--socket", "/nowhere/sock"), UNREACHABLE, "Error: no daemon answers at "),
    ):
        done = await run(agent, *words)
        assert done.status == status, done
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert bool(done.stderr) == bool(sentence)
    assert (await cacheagent("check-config", agent.config)).stdout == "OK\n"
    assert await agent.stop() == 0
    assert (await run(agent, "status")).status == UNREACHABLE


@pytest.fixture
async def watched(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon whose log tells of everybody who looks."""
    log = {"level": "debug", "format": "json"}
    async with agent_on(without_keystone(glance.url, log=log)) as running:
        yield running


async def pull_halfway(agent: Agent, image_id: str, stderr: int) -> asyncio.subprocess.Process:
    """Begin to pull an image whose data do not come yet, and wait until the command looks on."""
    process = await asyncio.create_subprocess_exec(
        # Whoever runs the tests in the background has Ctrl-C ignored, and all children with them.
        *("env", "--default-signal=INT", sys.executable, "-m", "cacheagent"),
        *("image", "pull", image_id, "--json"),
        env={**os.environ, "CACHEAGENT_SOCKET": str(agent.api_socket), "TERM": "xterm"},
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
    looks = 0
    while looks < 2:
        await agent.ask("GET", "/healthz")
        looks = [line.get("operation") for line in agent.lines("request")].count("image_show")
    return process


async def test_no_bar_where_nobody_sees_it(watched: Agent, glance: LyingGlance) -> None:
    """Whoever redirects the output of a pull that takes long gets the answer and nothing else."""
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    process = await pull_halfway(watched, glance.add(b"x" * MIB), asyncio.subprocess.PIPE)
    gate.set()
    stdout, stderr = await process.communicate()
    assert (process.returncode, stderr) == (DONE, b"")
    assert json.loads(stdout)["state"] == "ready"


async def test_bar_on_a_terminal(watched: Agent, glance: LyingGlance) -> None:
    """On a terminal whoever waits sees how far the image is, while the output stays clean."""
    gate = asyncio.Event()
    glance.lie("data", lying_glance.held(gate))
    screen, terminal = os.openpty()
    drawn = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(screen, lambda: drawn.extend(os.read(screen, 4096)))
    try:
        process = await pull_halfway(watched, glance.add(b"x" * MIB), terminal)
        gate.set()
        stdout, _ = await process.communicate()
    finally:
        loop.remove_reader(screen)
        os.close(terminal)
        os.close(screen)
    assert process.returncode == DONE
    assert json.loads(stdout)["state"] == "ready"
    assert b"downloading" in drawn
    assert b"1.0 MiB" in drawn


async def test_whoever_stops_waiting_stops_the_download(
    watched: Agent, glance: LyingGlance
) -> None:
    """Ctrl-C ends a pull at once and without a traceback, and nothing goes on behind it."""
    glance.lie("data", lying_glance.silence(after=4))
    image_id = glance.add(b"x" * MIB)
    process = await pull_halfway(watched, image_id, asyncio.subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (REFUSED, b"")
    assert stderr.strip() == b"Aborted!"
    while (status := await watched.ask("GET", "/v1/status")).body["counts"]["downloads"]:
        assert status.status == 200
    pulled = await watched.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    assert pulled.body["state"] == "ready"


async def test_scheduler_with_asyncio(agent: Agent, image_service: str) -> None:
    """The library makes disks without waiting, tells why a base stays, and takes all away."""
    image_id = (await image_ids(image_service))["disk"]
    instance = str(uuid.uuid4())
    async with AsyncClient(str(agent.api_socket)) as client:
        begun = await client.create_disk(instance, "root", wait=False, image_id=image_id)
        disk = begun
        while disk["state"] == "pending":
            disk = await client.disk(instance, "root")
        assert (disk["state"], disk["path"]) == ("ready", begun["path"])
        await qemu.check(disk["path"])
        crowd = await asyncio.gather(
            *(client.create_disk(str(uuid.uuid4()), "root", image_id=image_id) for _ in range(20))
        )
        assert {made["cache"] for made in crowd} == {"hit"}
        with pytest.raises(RequestFailedError) as refused:
            await client.evict(image_id)
        assert refused.value.status == 409
        users = refused.value.problem["users"]
        assert isinstance(users, list)
        assert len(users) == 21
        for each in await client.instances():
            await client.delete_instance(each["instance_id"])
        await client.evict(image_id)
        assert (await client.images(), await client.instances()) == ([], [])
        assert (await client.status())["counts"]["bases"] == 0


async def test_scheduler_without_asyncio(agent: Agent, image_service: str) -> None:
    """The same library works in threads, several at a time."""
    image_id = (await image_ids(image_service))["disk"]
    instance = str(uuid.uuid4())

    def work() -> None:
        client = Client(str(agent.api_socket))
        assert client.pull(image_id, wait=True)["state"] == "ready"
        made = client.create_disk(instance, "root", image_id=image_id, size_bytes=128 * MIB)
        assert client.disk(instance, "root") == made
        with ThreadPoolExecutor(4) as threads:
            again = list(
                threads.map(
                    lambda _: client.create_disk(
                        instance, "root", image_id=image_id, size_bytes=128 * MIB
                    ),
                    range(8),
                )
            )
        assert again == [made] * 8
        with pytest.raises(RequestFailedError, match="is another one") as refused:
            client.create_disk(instance, "root", image_id=image_id)
        assert refused.value.problem["existing"] == {
            "image_id": image_id,
            "format": "qcow2",
            "mode": "overlay",
            "size_bytes": 128 * MIB,
            "virtual_size_bytes": 128 * MIB,
        }
        client.delete_disk(instance, "root")
        client.evict(image_id)
        assert client.images() == []

    await asyncio.to_thread(work)
