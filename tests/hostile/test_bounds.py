"""What a conversion may write and use: known before it starts, and kept while it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from cacheagent.backends.qemuimg import QemuImg
from cacheagent.errors import ImageUnacceptableError, InsufficientSpaceError
from cacheagent.model import Caller, SpaceUsage
from tests.hostile.qcow2 import bomb, many_tables
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.qemuimg import QemuImgInfo
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

MIB = 1 << 20
NOBODY = Caller()


@pytest.mark.parametrize("virtual_size", [None, 1, 32 * MIB])
async def test_a_bomb_that_would_not_fit_is_not_converted(
    rig: Rig,
    glance: LyingGlance,
    started: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    virtual_size: int | None,
) -> None:
    """CVE-2013-4463: room for all of its disk is set aside first, whatever Glance says of it."""
    left = SpaceUsage(total=1 << 40, available=16 * MIB)
    monkeypatch.setattr(rig.parts.room, "_usage", AsyncMock(return_value=left))
    image_id = glance.add(bomb(32), disk_format="qcow2", virtual_size=virtual_size)
    with pytest.raises(InsufficientSpaceError):
        await rig.bases.ensure(image_id, NOBODY)
    assert [words for words in started if "convert" in words] == []
    assert not [path for path in rig.layout.ingest.iterdir() if path.suffix == ".raw"]


async def test_an_image_that_would_keep_qemu_img_busy_is_refused(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """CVE-2015-5162: tables without end are given up at the limit of CPU time, by that name."""
    image_id = glance.add(many_tables(1 << 18), disk_format="qcow2", virtual_size=None)
    limits = {"cpu_time_limit": "1s"}
    async with in_a_task(rig_on(tmp_path, glance.url, qemu=limits)) as rig:
        with pytest.raises(ImageUnacceptableError, match="limit of CPU time") as caught:
            await rig.bases.ensure(image_id, NOBODY)
        assert caught.value.reason == "limits"
        assert list(rig.layout.bases.iterdir()) == []


async def test_a_disk_that_grows_between_two_looks_is_refused(
    rig: Rig,
    glance: LyingGlance,
    started: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where qemu-img reads a larger disk than was inspected, there is no room for it."""
    look = QemuImg.info

    async def larger(self: QemuImg, path: Path, image_format: str) -> QemuImgInfo:
        found = await look(self, path, image_format)
        return replace(found, virtual_size=found.virtual_size + 512)

    monkeypatch.setattr(QemuImg, "info", larger)
    image_id = glance.add(bomb(2), disk_format="qcow2", virtual_size=None)
    with pytest.raises(ImageUnacceptableError) as caught:
        await rig.bases.ensure(image_id, NOBODY)
    assert caught.value.reason == "virtual-size"
    assert [words for words in started if "convert" in words] == []
