"""A daemon on a small file system that is really full: XFS with reflink, and ext4."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import without_keystone
from tests.e2e.filesystem import Filler, Gauge, agent_on_filesystem
from tests.fakes import lying_glance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.e2e.agent import Agent, Answer
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
SIZE = 4 * MIB
IMAGES = 50
KEPT = 10
SYSTEM = 320 * MIB
"""The smallest XFS is 300 MiB."""

SLACK = MIB
"""Manifests, folders and the catalog: what is on the file system beside images."""

BOUNDS = {
    "max_size": {"max_size": KEPT * SIZE + SLACK, "high_watermark": 100},
    "high_watermark": {"high_watermark": 30, "low_watermark": 25},
    "min_free": {"min_free": SYSTEM * 6 // 10, "high_watermark": 100},
}
LARGE = 16 * MIB
"""An image that does not fit into what a full file system has left, whoever gave up a little."""

ENOUGH = 5000
"""Writes after which the catalog must have wanted more room than SQLite's log had."""

KINDS = pytest.mark.parametrize("kind", ["xfs", "ext4"])
EVICTABLE = pytest.mark.parametrize("evictable", [False, True], ids=["nothing", "evictable"])


def settings(glance: LyingGlance, **eviction: object) -> dict[str, dict[str, object]]:
    """Give a configuration in which a base may go as soon as nobody uses it."""
    bounds = {"min_age": 0, "min_free": 0, "interval": "1h", "high_watermark": 100, **eviction}
    sections = without_keystone(glance.url, eviction=bounds)
    return {name: dict(section) for name, section in sections.items()}


async def pull(agent: Agent, image_id: str) -> Answer:
    """Bring an image in, and wait for it."""
    return await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})


async def nothing_is_left(agent: Agent) -> None:
    """Check that the daemon lives, and that no work of it has left a file or a reservation."""
    assert (await agent.ask("GET", "/healthz")).status == 200
    assert agent.left_in_ingest() == []
    assert list((agent.state / "trash").iterdir()) == []
    assert [str(path) for path in agent.state.rglob("*.making")] == []
    status = (await agent.ask("GET", "/v1/status")).body
    assert status["space"]["reserved_bytes"] == 0


def is_clear(answer: Answer) -> bool:
    """Tell whether the answer is a refusal for want of space, with the figures; else a success."""
    if answer.status < 300:
        return False
    assert (answer.status, answer.body["type"]) == (507, "urn:cacheagent:insufficient-space")
    assert answer.body["required_bytes"] > 0
    assert answer.body["available_bytes"] >= 0
    return True


@pytest.mark.timeout(180)
@KINDS
@pytest.mark.parametrize("bound", BOUNDS)
async def test_fifty_images_through_a_cache_of_ten(
    glance: LyingGlance, kind: str, bound: str
) -> None:
    """Each comes in, the oldest go, and no bound is exceeded by more than the running ingest."""
    policy = BOUNDS[bound]
    async with agent_on_filesystem(kind, SYSTEM, settings(glance, **policy)) as agent:
        async with Gauge(agent.state).watching() as gauge:
            for _ in range(IMAGES):
                answer = await pull(agent, glance.add(os.urandom(SIZE)))
                assert answer.status == 200, answer.body
        total = os.statvfs(agent.state).f_blocks * os.statvfs(agent.state).f_frsize
        assert gauge.most_cached <= policy.get("max_size", total) + SIZE
        assert gauge.most_used <= total * policy["high_watermark"] / 100 + SIZE
        assert gauge.least_free >= policy.get("min_free", 0) - SIZE
        left = [name for name in agent.bases() if not name.endswith(".json")]
        assert KEPT // 2 <= len(left) < IMAGES
        await nothing_is_left(agent)
        assert len(glance.calls("data")) == IMAGES


@KINDS
async def test_what_can_never_fit_costs_nothing(glance: LyingGlance, kind: str) -> None:
    """An image larger than the file system is refused at once, and everything cached stays."""
    async with agent_on_filesystem(kind, SYSTEM, settings(glance)) as agent:
        for _ in range(3):
            await pull(agent, glance.add(os.urandom(SIZE)))
        before = agent.bases()
        huge = glance.add(b"x", size=SYSTEM)
        assert is_clear(await pull(agent, huge))
        assert agent.bases() == before
        assert len(glance.calls("data")) == 3
        await nothing_is_left(agent)


class Stage:
    """A file system with or without a base that may go, and somebody who fills it."""

    def __init__(self, agent: Agent, glance: LyingGlance) -> None:
        self.agent = agent
        self.glance = glance
        self.filler = Filler(agent.state)

    async def prepare(self, *, evictable: bool) -> None:
        """Have a base in the cache that nobody uses, if there is to be one."""
        if evictable:
            idle = self.glance.add(os.urandom(3 * LARGE))
            assert (await pull(self.agent, idle)).status == 200

    async def fill(self) -> None:
        """Leave no byte."""
        await asyncio.to_thread(self.filler.fill)

    async def ends_well(
        self, answer: Answer, again: Callable[[], Awaitable[Answer]], *, evictable: bool
    ) -> None:
        """Check the answer: a success where something could go, else a refusal without a trace."""
        refused = is_clear(answer)
        assert not (refused and evictable), answer.body
        await nothing_is_left(self.agent)
        await asyncio.to_thread(self.filler.clear)
        repeated = await again()
        assert repeated.status in {200, 201}, repeated.body


@contextlib.asynccontextmanager
async def stage(
    kind: str, glance: LyingGlance, **sections: dict[str, object]
) -> AsyncIterator[Stage]:
    """Give a stage on a file system of this kind."""
    async with agent_on_filesystem(kind, SYSTEM, {**settings(glance), **sections}) as agent:
        yield Stage(agent, glance)


@KINDS
@EVICTABLE
async def test_disk_fills_up_during_a_download(
    glance: LyingGlance, kind: str, *, evictable: bool
) -> None:
    """Other files take the room that was set aside: the pass goes on after an eviction, or not."""
    gate = asyncio.Event()
    async with stage(kind, glance) as on:
        await on.prepare(evictable=evictable)
        image_id = glance.add(os.urandom(LARGE))
        glance.lie("data", lying_glance.paused(LARGE // 2, gate))
        pulling = asyncio.create_task(pull(on.agent, image_id))
        part = on.agent.state / "ingest" / f"{image_id}.part"
        while not part.exists() or part.stat().st_blocks < LARGE // 4 // 512:
            await on.agent.ask("GET", "/healthz")
        await on.fill()
        gate.set()
        await on.ends_well(await pulling, lambda: pull(on.agent, image_id), evictable=evictable)


WRAPPER = """#!/bin/bash
here=${0%/*}
case " $* " in *" convert "*)
    if rm "$here/once" 2>/dev/null; then
        echo asked > "$here/asked"
        read -r _ < "$here/answer"
    fi
esac
exec qemu-img "$@"
"""


def qemu_img_that_asks(folder: Path) -> Path:
    """Write a qemu-img whose first conversion waits until somebody has answered it."""
    folder.mkdir()
    for name in ("asked", "answer"):
        os.mkfifo(folder / name)
    (folder / "once").touch()
    wrapper = folder / "qemu-img"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    return wrapper


def random_qcow2(folder: Path) -> bytes:
    """Give a qcow2 image that becomes ``LARGE`` bytes of raw data."""
    raw, path = folder / "disk.raw", folder / "disk.qcow2"
    raw.write_bytes(os.urandom(LARGE))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


@KINDS
@EVICTABLE
async def test_disk_fills_up_during_a_conversion(
    glance: LyingGlance, tmp_path: Path, kind: str, *, evictable: bool
) -> None:
    """What qemu-img could not write is told as want of space, not as a bad image."""
    wrapper = await asyncio.to_thread(qemu_img_that_asks, tmp_path / "bin")
    source = await asyncio.to_thread(random_qcow2, tmp_path)
    async with stage(kind, glance, qemu={"qemu_img": str(wrapper), "sandbox": "rlimits"}) as on:
        await on.prepare(evictable=evictable)
        image_id = glance.add(source, disk_format="qcow2")
        pulling = asyncio.create_task(pull(on.agent, image_id))
        await asyncio.to_thread((wrapper.parent / "asked").read_text)
        await on.fill()
        await asyncio.to_thread((wrapper.parent / "answer").write_text, "go\n")
        await on.ends_well(await pulling, lambda: pull(on.agent, image_id), evictable=evictable)


@KINDS
@EVICTABLE
@pytest.mark.parametrize("spec", [{}, {"mode": "full"}, {"format": "raw"}], ids=repr)
async def test_disk_is_full_when_a_disk_is_made(
    glance: LyingGlance, kind: str, spec: dict[str, str], *, evictable: bool
) -> None:
    """A clone or a copy that finds no room leaves no row and no file."""
    async with stage(kind, glance) as on:
        await on.prepare(evictable=evictable)
        image_id = glance.add(os.urandom(2 * MIB))
        first = await on.agent.create(image_id)
        assert first.status == 201
        await on.fill()
        key = f"{uuid.uuid4()}/root"
        answer = await on.agent.create(image_id, key, token=None, **spec)
        if answer.status == 507:
            listed = (await on.agent.ask("GET", "/v1/instances")).body["instances"]
            assert [each["instance_id"] for each in listed] == [first.body["instance_id"]]
        again = functools.partial(on.agent.create, image_id, key, token=None, **spec)
        await on.ends_well(answer, again, evictable=evictable)


@KINDS
@EVICTABLE
async def test_disk_is_full_when_the_catalog_is_written(
    glance: LyingGlance, kind: str, *, evictable: bool
) -> None:
    """A catalog that cannot grow refuses, or an eviction makes room; and it stays sound."""
    async with stage(kind, glance) as on:
        await on.prepare(evictable=evictable)
        image_id = glance.add(os.urandom(2 * MIB))
        assert (await on.agent.create(image_id)).status == 201
        await on.fill()
        path = f"/v1/images/{image_id}/pin"
        before = on.agent.bases()
        # SQLite writes into what its log has taken already, and then asks for more.
        answer = await on.agent.ask("PUT", path)
        for number in range(ENOUGH):
            if answer.status != 204 or on.agent.bases() != before:
                break
            answer = await on.agent.ask("PUT" if number % 2 else "DELETE", path)
        assert is_clear(answer) != evictable
        await nothing_is_left(on.agent)
        await asyncio.to_thread(on.filler.clear)
        assert (await on.agent.ask("PUT", path)).status == 204
        await on.agent.kill()
        await on.agent.start()
        assert (await on.agent.ask("GET", f"/v1/images/{image_id}")).body["pinned"]
