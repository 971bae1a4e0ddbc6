"""A daemon whose files others delete, move and truncate while it runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.needs import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

DATA = os.urandom(4 << 20)
HOUR = 3600
INSTANCES = "/v1/instances"


@pytest.fixture
def shelf() -> Iterator[Path]:
    """Give a scan folder."""
    with tempfile.TemporaryDirectory(prefix="shelf-") as folder:
        yield Path(folder)


@asynccontextmanager
async def watched(glance: LyingGlance, shelf: Path, **eviction: object) -> AsyncIterator[Agent]:
    """Run a daemon that does by itself, in the time of a test, only what events tell it to do."""
    settings = without_keystone(
        glance.url,
        storage={"scan_dirs": [str(shelf)]},
        eviction={"interval": HOUR, **eviction},
        log={"format": "json"},
    )
    async with agent_on(settings) as agent:
        # The first rounds of the loops come at once, and would find out without any event.
        await agent.logged("reconciled", 2)
        await until(agent, lambda: _has_run(agent, "watcher"))
        yield agent


@pytest.fixture
async def agent(glance: LyingGlance, shelf: Path) -> AsyncIterator[Agent]:
    """Run one without bounds."""
    async with watched(glance, shelf) as running:
        yield running


async def until(agent: Agent, holds: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again until something holds."""
    async with asyncio.timeout(60):
        while not await holds():
            await agent.ask("GET", "/healthz")


async def _has_run(agent: Agent, loop: str) -> bool:
    loops = (await agent.ask("GET", "/v1/status")).body["loops"]
    return bool(loops[loop])


async def disks(agent: Agent) -> list[str]:
    """Name the instances whose disks the daemon knows."""
    found = (await agent.ask("GET", INSTANCES)).body["instances"]
    return [instance["instance_id"] for instance in found]


async def disk(agent: Agent, image_id: str) -> tuple[str, Path]:
    """Make a disk; give its instance and its file."""
    answer = await agent.create(image_id)
    assert answer.status == 201, answer
    return answer.body["instance_id"], Path(answer.body["path"])


async def base_of(agent: Agent, image_id: str) -> dict[str, Any]:
    """Give what the daemon says of the image, with its base."""
    image: dict[str, Any] = (await agent.ask("GET", f"/v1/images/{image_id}")).body
    return image


def _unlink(path: Path, _: Path) -> None:
    path.unlink()


def _move(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere / path.name)


def _remove_folder(path: Path, _: Path) -> None:
    shutil.rmtree(path.parent)


def _move_folder(path: Path, elsewhere: Path) -> None:
    path.parent.rename(elsewhere / "instance")


@pytest.mark.parametrize("take_away", [_unlink, _move, _remove_folder, _move_folder])
async def test_disk_that_is_taken_away_is_known_no_more(
    agent: Agent, glance: LyingGlance, take_away: Callable[[Path, Path], None]
) -> None:
    """At once, without a request and without a pass; its base was in use until then."""
    image_id = glance.add(DATA)
    instance_id, path = await disk(agent, image_id)
    other, _ = await disk(agent, image_id)
    before = (await base_of(agent, image_id))["last_used_at"]
    take_away(path, agent.folder)

    async def gone() -> bool:
        return await disks(agent) == [other]

    await until(agent, gone)
    assert (await base_of(agent, image_id))["last_used_at"] > before
    assert (await agent.ask("GET", f"{INSTANCES}/{instance_id}/disks/root")).status == 404


def _truncate(path: Path) -> None:
    os.truncate(path, 512)


def _overwrite(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"something else")


@pytest.mark.parametrize("harm", [Path.unlink, _truncate, _overwrite])
async def test_base_that_disks_need_is_fetched_anew(
    agent: Agent, glance: LyingGlance, harm: Callable[[Path], None]
) -> None:
    """Whoever deletes, truncates or changes a base costs a download, and no disk."""
    image_id = glance.add(DATA)
    instance_id, path = await disk(agent, image_id)
    (name,) = (name for name in agent.bases() if not name.endswith(".json"))
    base = agent.state / "bases" / name
    harm(base)

    async def right() -> bool:
        whole = await asyncio.to_thread(_holds_data, base)
        return whole and (await base_of(agent, image_id))["state"] == "ready"

    await until(agent, right)
    assert len(glance.calls("data")) == 2
    assert await disks(agent) == [instance_id]
    assert await _qemu_img_says("compare", "-U", path, base) == "Images are identical."
    assert agent.lines("a base is not what it was")


def _holds_data(path: Path) -> bool:
    try:
        return path.read_bytes() == DATA
    except FileNotFoundError:
        return False


async def _qemu_img_says(*arguments: object) -> str:
    done = await asyncio.to_thread(
        subprocess.run,
        ["qemu-img", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


async def _overlay(base: Path, path: Path) -> None:
    await _qemu_img_says("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)


async def test_overlay_that_came_with_its_folder_is_taken_in_and_its_end_noticed(
    agent: Agent, glance: LyingGlance
) -> None:
    """A new instance is watched without a gap, whoever made it, and however fast."""
    image_id = glance.add(DATA)
    await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
    base = Path((await base_of(agent, image_id))["base"]["path"])
    mine = agent.folder / "mine"
    mine.mkdir()
    await _overlay(base, mine / "root.qcow2")
    instance_id = str(uuid.uuid4())
    folder = agent.state / "instances" / instance_id
    mine.rename(folder)

    async def known() -> bool:
        return await disks(agent) == [instance_id]

    async def unknown() -> bool:
        return await disks(agent) == []

    await until(agent, known)
    (folder / "root.qcow2").unlink()
    await until(agent, unknown)


async def test_end_of_an_overlay_of_somebody_else_makes_room(
    glance: LyingGlance, shelf: Path
) -> None:
    """A base that only an overlay in a scan folder kept goes as soon as that has gone."""
    image_id = glance.add(DATA)
    async with watched(glance, shelf, min_age=0, min_keep=0) as agent:
        await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
        base = Path((await base_of(agent, image_id))["base"]["path"])
        (shelf / "deep").mkdir()
        await _overlay(base, shelf / "deep" / "vm.img")
        bounds = {**agent.settings["eviction"], "max_size": 1 << 20}
        agent.settings = {**agent.settings, "eviction": bounds}
        agent.write_config()
        await agent.logged("reloaded")
        answer = await agent.ask("POST", "/v1/prune", {})
        assert answer.status == 200
        assert base.exists()
        (shelf / "deep" / "vm.img").unlink()

        async def gone() -> bool:
            return not base.exists()

        await until(agent, gone)


async def test_lost_events_cost_time_only(agent: Agent, glance: LyingGlance, shelf: Path) -> None:
    """What happens while the kernel drops events is found by looking."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    require(limit <= 100_000, f"the kernel keeps {limit} events: too many to make it drop some")
    image_id = glance.add(DATA)
    _, path = await disk(agent, image_id)
    other, _ = await disk(agent, image_id)
    agent.send(signal.SIGSTOP)
    try:
        await asyncio.to_thread(_flood, shelf / "x", limit // 2 + 1)
        path.unlink()
    finally:
        agent.send(signal.SIGCONT)

    async def gone() -> bool:
        return await disks(agent) == [other]

    await until(agent, gone)
    assert await agent.metric("inotify_overflows_total") >= 1


def _flood(path: Path, times: int) -> None:
    for _ in range(times):
        path.mkdir()
        path.rmdir()
