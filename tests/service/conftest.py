"""An image service that does as it is told, and services with real backends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.rig import Rig, in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance


@pytest.fixture
async def rig(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire the services of an agent on it."""
    async with in_a_task(rig_on(tmp_path, glance.url)) as wired:
        yield wired
