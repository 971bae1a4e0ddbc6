"""A daemon that is killed at every step of what it does, and then started again.

The steps are not listed anywhere: a daemon that nobody kills tells them, in each scenario, and
then as many daemons as there are steps are killed at one each.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.agent import ForkedAgent, ForkServer, fork_server
from tests.crash.report import KILLED
from tests.crash.scenarios import MIB, SCENARIOS, Images, Scenario
from tests.crash.trial import Trial, try_all
from tests.crash.world import Image, World
from tests.e2e.agent import without_keystone
from tests.fakes.containers import ova
from tests.fakes.images import made_by_qemu
from tests.fakes.lying_glance import LyingGlance
from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WORKERS = 3
"""Scenarios played at once: each waits for the disk more than it computes."""


QUIET: dict[str, dict[str, object]] = {
    "eviction": {
        "min_free": 0,
        "low_watermark": 99,
        "high_watermark": 100,
        "min_age": 0,
        "interval": 600,
    },
    "glance": {"revalidate_interval": 0, "failure_ttl": 0},
    "log": {"format": "json"},
    "scrub": {"interval": 0},
}
"""Nothing goes on by itself, however full this machine is, and all may go that is unused."""


@pytest.fixture(scope="module")
def servers() -> Iterator[list[ForkServer]]:
    """Load the daemon once for each worker."""
    require_programs("qemu-img", "mke2fs")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(fork_server()) for _ in range(WORKERS)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Make the images, each with random content."""
    # The last block is neither full nor a multiple of what direct I/O asks for.
    raw = os.urandom(4 * MIB) + bytes(MIB) + os.urandom(1536)
    content = os.urandom(MIB) + bytes(MIB)
    folder = tmp_path_factory.mktemp("images")
    qcow2 = made_by_qemu(folder / "disk.qcow2", "qcow2", "", content).read_bytes()
    small = os.urandom(64 << 10)
    # As short as can be: each block is a step.
    packed = os.urandom(64 << 10)
    vmdk = made_by_qemu(
        folder / "disk.vmdk", "vmdk", "subformat=streamOptimized", packed
    ).read_bytes()
    return Images(
        raw=_image(1, raw),
        twin=_image(2, raw),
        small=_image(3, small),
        qcow2=_image(4, qcow2, "qcow2", content),
        bad=replace(_image(5, os.urandom(64 << 10), "qcow2"), refused=True),
        stream=replace(
            _image(6, gzip.compress(packed), "raw", packed), container_format="compressed"
        ),
        archive=replace(_image(7, ova(vmdk, len(packed)), "vmdk", packed), container_format="ova"),
    )


def _image(
    number: int, data: bytes, disk_format: str = "raw", content: bytes | None = None
) -> Image:
    return Image(
        image_id=f"3c9a5a52-8f0e-4a54-8a3c-00000000000{number}",
        base_id=f"sha512-{hashlib.sha512(data).hexdigest()}",
        disk_format=disk_format,
        data=data,
        content=data if content is None else content,
    )


@pytest.fixture
async def worlds(servers: list[ForkServer], images: Images) -> AsyncIterator[list[World]]:
    """Give each worker an agent in a folder of its own; all get the same images."""
    async with LyingGlance() as glance:
        for image in images.all():
            glance.add(
                image.data,
                id=image.image_id,
                disk_format=image.disk_format,
                container_format=image.container_format,
            )
        settings = without_keystone(glance.url, **QUIET)
        with contextlib.ExitStack() as stack:
            folders = [
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ca-")))
                for _ in servers
            ]
            yield [
                World(
                    agent=ForkedAgent(folder=folder, settings=settings, server=server),
                    images=images.all(),
                )
                for folder, server in zip(folders, servers, strict=True)
            ]


@pytest.mark.allow_blocking
@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_killed_anywhere_and_started_again(
    scenario: Scenario, worlds: list[World], images: Images, request: pytest.FixtureRequest
) -> None:
    """Wherever it dies: no base is wrong, no disk lost, no file left, and nothing stuck."""
    trials = [Trial(world, images, scenario) for world in worlds]
    await asyncio.gather(*(trial.prepare() for trial in trials))
    died = await try_all(trials, await trials[0].record())
    assert died
    killed = request.config.stash.setdefault(KILLED, Counter())
    killed.update(str(death) for death in died)
