"""What an operator and a tenant hear of a pass that could not do all it should."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.errors import InsufficientSpaceError
from cacheagent.model import Caller, UserKind
from tests.needs import require_programs
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import SpaceUsage
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

MIB = 1 << 20
NOBODY = Caller()


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """Give a folder of another manager that has something in it."""
    folder = tmp_path / "scanned"
    folder.mkdir()
    (folder / "somebody's").touch()
    return folder


@pytest.fixture
async def small(tmp_path: Path, glance: LyingGlance, scanned: Path) -> AsyncIterator[Rig]:
    """Wire an agent whose cache holds four MiB, with one of three in it."""
    require_programs("qemu-img")
    sections: dict[str, dict[str, Any]] = {
        "eviction": {"min_free": "1MiB", "min_age": 0, "high_watermark": 100, "max_size": "4MiB"},
        "storage": {"state_dir": str(tmp_path / "state"), "scan_dirs": [str(scanned)]},
    }
    async with in_a_task(rig_on(tmp_path, glance.url, **sections)) as wired:
        await wired.bases.ensure(glance.add(os.urandom(3 * MIB)), NOBODY)
        yield wired


async def test_refusal_names_the_bound_and_what_keeps_the_rest(
    small: Rig, glance: LyingGlance, scanned: Path
) -> None:
    """Who is refused reads which bound it was, what holds the cache, and nobody's file."""
    (scanned / "somebody's").unlink()
    with pytest.raises(InsufficientSpaceError) as refused:
        await small.bases.ensure(glance.add(os.urandom(2 * MIB)), NOBODY)
    told = str(refused.value)
    assert "within eviction.max_size (4.0 MiB); bases are kept by: doubt (1)" in told
    assert "the status of the agent has the doubts" in told
    # It is remembered, and told to all who wait, whoever they are.
    assert str(scanned) not in told


async def test_pass_that_evicts_nothing_waits_for_nothing(
    small: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was to come free, it does not matter that others write meanwhile."""
    usage, looks = await small.parts.store.usage(), 0

    async def filling() -> SpaceUsage:
        nonlocal looks
        looks += 1
        return replace(usage, available=usage.available - looks * MIB)

    monkeypatch.setattr(small.parts.store, "usage", filling)
    done = await small.evictions.run("interval")
    # Once before the pass and once behind it.
    assert (done.evicted, done.dropped, done.freed_bytes, looks) == ((), (), 0, 2)


async def test_doubt_is_told_while_it_lasts(
    small: Rig, scanned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has to wait until room runs out to learn that nothing can be evicted."""
    (scanned / "somebody's").unlink()
    for _ in range(2):
        await small.evictions.run("interval")
    (doubt,) = small.evictions.outcome.doubts
    assert (doubt.kind, doubt.path) == (UserKind.DOUBT, scanned)
    assert small.metric("eviction_doubts") == 1
    (scanned / "somebody's").touch()
    await small.evictions.run("interval")
    assert small.evictions.outcome.doubts == ()
    assert small.metric("eviction_doubts") == 0
    log = capsys.readouterr().out
    assert log.count("nothing can be evicted") == 1
    assert log.count("can be evicted again") == 1


async def test_wish_that_cannot_be_met_breaks_no_bound(small: Rig, glance: LyingGlance) -> None:
    """One request for more than the cache can hold is no alarm for the operator."""
    with pytest.raises(InsufficientSpaceError):
        await small.bases.ensure(glance.add(os.urandom(5 * MIB)), NOBODY)
    assert small.metric("prune_unmet_bytes") == 0
    assert small.evictions.outcome.unmet_bytes == 0
