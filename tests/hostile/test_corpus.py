"""Whatever is uploaded: nothing hostile is published, opened too early, or left lying about."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.inspect import Inspection
from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import CacheResult, Caller
from cacheagent.policy.admission import admit_content
from tests.hostile.corpus import CORPUS
from tests.hostile.qcow2 import sound
from tests.hostile.table import ADMITTED, Judge, Row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cacheagent.model import ImageId
    from cacheagent.service.bases import Ensured
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

NOBODY = Caller()
AT_ONCE = 8


def uploaded(glance: LyingGlance, row: Row) -> ImageId:
    """Store the image of a row; Glance tells of it what the row says."""
    return glance.add(
        row.build(),
        **{
            "disk_format": row.disk_format,
            "container_format": row.container_format,
            "virtual_size": None,
            **row.metadata,
        },
    )


async def answer(rig: Rig, image_id: ImageId) -> str:
    """Ask for an image, and give the reason of the refusal, or ``ADMITTED``."""
    try:
        ensured = await rig.bases.ensure(image_id, NOBODY)
    except ImageUnacceptableError as error:
        return error.reason
    assert base_file(rig, ensured).is_file()
    return ADMITTED


def base_file(rig: Rig, ensured: Ensured) -> Path:
    """Give the path of a base."""
    return rig.layout.base(ensured.base.base_id, ensured.base.format)


async def left_over(rig: Rig) -> list[str]:
    """Name every file of the agent's but those of its own, and those in quarantine."""
    folders = (rig.layout.bases, rig.layout.ingest, rig.layout.trash, rig.layout.templates)
    return [str(path) for folder in folders for path in _files(folder)]


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


async def passes_the_policy(rig: Rig, glance: LyingGlance, image_id: ImageId) -> bool:
    """Tell whether the bytes alone satisfy the policy."""
    inspection = Inspection()
    inspection.feed(glance.images[image_id].data)
    image = await rig.parts.glance.show(image_id, NOBODY)
    with contextlib.suppress(ImageUnacceptableError):
        admit_content(image, inspection.finish(), rig.parts.rules())
        return True
    return False


async def serves_a_good_image(rig: Rig, glance: LyingGlance) -> None:
    """Check that a good image comes in."""
    image_id = glance.add(sound(), disk_format="qcow2", virtual_size=None)
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.MISS


@pytest.mark.parametrize("row", CORPUS, ids=str)
async def test_an_image_is_refused_by_the_rule_it_breaks_and_leaves_nothing(
    rig: Rig, glance: LyingGlance, started: list[tuple[str, ...]], row: Row
) -> None:
    """It is published only if it is good, and qemu-img sees only what the policy let pass."""
    image_id = uploaded(glance, row)
    assert await answer(rig, image_id) == row.expected
    opened = bool(started)
    passed = row.by is not Judge.DESCRIPTION and await passes_the_policy(rig, glance, image_id)
    assert opened == passed == (row.expected == ADMITTED or row.by is Judge.QEMU_IMG)
    assert bool(glance.calls("data")) == (row.by is not Judge.DESCRIPTION)
    if row.expected != ADMITTED:
        assert await left_over(rig) == []
        assert rig.parts.room.reserved == 0


async def test_an_agent_that_saw_all_of_them_serves_on(rig: Rig, glance: LyingGlance) -> None:
    """Hundreds of hostile images, several at once, leave an agent as it was before."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(row: Row) -> None:
        async with turn:
            image_id = uploaded(glance, row)
            assert await answer(rig, image_id) == row.expected, row.name
            del glance.images[image_id]

    refused = [row for row in CORPUS if row.expected != ADMITTED]
    async with asyncio.TaskGroup() as group:
        for row in refused:
            group.create_task(ask(row))
    assert await left_over(rig) == []
    assert (rig.parts.room.reserved, rig.bases.coming()) == (0, frozenset())
    await serves_a_good_image(rig, glance)


def test_the_corpus_is_as_large_as_promised_and_names_every_image_once() -> None:
    """At least sixty that have to be refused, and odd ones that must not be."""
    outcomes = Counter(row.expected == ADMITTED for row in CORPUS)
    assert outcomes[False] >= 60
    assert outcomes[True] >= 10
    assert len({row.name for row in CORPUS}) == len(CORPUS)
