"""An agent that looks at hostile images, and all programs that it starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.needs import require_programs
from tests.service.rig import Rig, in_a_task, rig_on

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance


@pytest.fixture(autouse=True)
def _qemu_img() -> None:
    require_programs("qemu-img")


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire the services of an agent that lets in no disk larger than 64 MiB."""
    limits = {"max_virtual_size": "64MiB", "max_size": "1GiB"}
    async with in_a_task(rig_on(tmp_path, glance.url, images=limits)) as wired:
        yield wired


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Record the command line of every program that the agent starts, however it is wrapped."""
    seen: list[tuple[str, ...]] = []
    start = asyncio.create_subprocess_exec

    async def recorded(*words: str, **options: Any) -> Process:  # noqa: ANN401 - handed on
        seen.append(words)
        return await start(*words, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", recorded)
    return seen
