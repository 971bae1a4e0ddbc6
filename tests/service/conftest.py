"""An image service that does as it is told, and services with real backends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.lying_glance import LyingGlance
from tests.service.rig import Rig, in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def glance() -> AsyncIterator[LyingGlance]:
    """Run an image service that lies when it is told to."""
    async with LyingGlance() as service:
        yield service


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire the services of an agent on it."""
    async with in_a_task(rig_on(tmp_path, glance.url)) as wired:
        yield wired
