"""Images that are refused after they have come: where they go, who hears of it, when they go."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from cacheagent.errors import (
    DigestMismatchError,
    DiskFullError,
    HostUnavailableError,
    ImageUnacceptableError,
    InsufficientSpaceError,
)
from cacheagent.model import CacheResult, Caller
from cacheagent.service.events import EventKind
from cacheagent.service.quarantine import Quarantine
from cacheagent.service.status import Status
from tests.service.rig import rig_on

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import ImageId
    from cacheagent.service.events import Event
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
TENANT = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake


def bad(glance: LyingGlance, size: int = MIB, **metadata: object) -> ImageId:
    """Store an image whose bytes are not of the format that Glance says."""
    return glance.add(os.urandom(size), disk_format="qcow2", **metadata)


async def refuse(rig: Rig, image_id: ImageId, caller: Caller = NOBODY) -> ImageUnacceptableError:
    """Ask for an image that is refused; give the refusal."""
    with pytest.raises(ImageUnacceptableError) as caught:
        await rig.bases.ensure(image_id, caller)
    return caught.value


def lying(rig: Rig) -> list[str]:
    """Name what lies in quarantine, without the records."""
    names = (path.name for path in rig.layout.quarantine.iterdir())
    return sorted(name for name in names if not name.endswith(".json"))


def ids(rig: Rig) -> list[str]:
    """Give the images whose files lie in quarantine."""
    return sorted(name.partition(".")[0] for name in lying(rig))


async def told(rig: Rig, kind: EventKind) -> Event:
    """Give the first event of this kind that is remembered."""
    async for event in rig.parts.events.follow("an-earlier-run-0"):
        if event.kind is kind:
            return event
    raise AssertionError("the events have ended")


async def test_a_refused_image_lies_in_quarantine_and_nowhere_else(
    rig: Rig, glance: LyingGlance
) -> None:
    """An operator finds the file under a name that tells all, with what was found beside it."""
    data = os.urandom(MIB)
    image_id = glance.add(data, disk_format="qcow2")
    refusal = await refuse(rig, image_id)
    (name,) = lying(rig)
    at = rig.parts.now()
    assert name == f"{image_id}.{at:%Y%m%dT%H%M%S%fZ}.{refusal.reason}"
    file = rig.layout.quarantine / name
    assert await asyncio.to_thread(file.read_bytes) == data
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    record = json.loads((rig.layout.quarantine / f"{name}.json").read_text())
    metadata = glance.images[image_id].metadata
    assert record == {
        "image_id": image_id,
        "reason": refusal.reason,
        "detail": str(refusal),
        "disk_format": "qcow2",
        "container_format": "bare",
        "size": MIB,
        "algorithm": "sha512",
        "digest": metadata["os_hash_value"],
        "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    assert rig.left_in_ingest() == []
    assert list(rig.layout.bases.iterdir()) == []
    assert await rig.parts.catalog.images() == []


async def test_bytes_of_another_digest_go_there_too(rig: Rig, glance: LyingGlance) -> None:
    """What Glance, or somebody on the way, sent in place of the image can be looked at."""
    image_id = glance.add(os.urandom(MIB), os_hash_value="0" * 128)
    with pytest.raises(DigestMismatchError) as caught:
        await rig.bases.ensure(image_id, NOBODY)
    (name,) = lying(rig)
    assert name.endswith(".digest-mismatch")
    record = json.loads((rig.layout.quarantine / f"{name}.json").read_text())
    assert (record["algorithm"], record["digest"]) == ("sha512", caught.value.actual)


async def test_what_is_refused_before_it_comes_leaves_nothing(
    rig: Rig, glance: LyingGlance
) -> None:
    """Of an image that its description alone condemns there is no file to look at."""
    await refuse(rig, glance.add(os.urandom(MIB), disk_format="docker"))
    assert lying(rig) == []


async def test_a_refusal_is_told_as_an_event(rig: Rig, glance: LyingGlance) -> None:
    """Whoever watches hears which image, which rule, and where the file is."""
    image_id = bad(glance)
    refusal = await refuse(rig, image_id)
    event = await told(rig, EventKind.IMAGE_REFUSED)
    assert event.facts == {
        "image_id": image_id,
        "reason": refusal.reason,
        "detail": str(refusal),
        "file": lying(rig)[0],
    }


async def test_ten_refusals_of_an_image_leave_one_file(rig: Rig, glance: LyingGlance) -> None:
    """A client that asks again and again fills nothing: the newest refusal is kept."""
    image_id = bad(glance)
    for _ in range(3):
        rig.clock.now += 10
        await refuse(rig, image_id)
    (name,) = lying(rig)
    assert f"{rig.parts.now():%Y%m%dT%H%M%S%fZ}" in name
    assert len(list(rig.layout.quarantine.iterdir())) == 2


async def test_the_oldest_gives_way_to_the_newest(tmp_path: Path, glance: LyingGlance) -> None:
    """The bound holds at once, not only when the pruner comes by."""
    bound = {"max_size": 2 * MIB + MIB // 2}
    async with rig_on(tmp_path, glance.url, quarantine=bound) as rig:
        images = [bad(glance) for _ in range(3)]
        for image_id in images:
            rig.clock.now += 10
            await refuse(rig, image_id)
        assert ids(rig) == sorted(images[1:])
        assert (await Quarantine(rig.parts).contents()).allocated <= bound["max_size"]


async def test_a_file_beyond_the_bound_is_not_kept_and_the_answer_says_so(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """Whoever reads the refusal knows why there is nothing to look at; others stay."""
    async with rig_on(tmp_path, glance.url, quarantine={"max_size": 2 * MIB}) as rig:
        small, large = bad(glance), bad(glance, 4 * MIB)
        await refuse(rig, small)
        refusal = await refuse(rig, large)
        assert str(refusal).endswith("; the file was not kept: quarantine.max_size is 2.0 MiB")
        assert ids(rig) == [small]
        assert rig.left_in_ingest() == []


async def test_a_pass_drops_what_is_too_old(rig: Rig, glance: LyingGlance) -> None:
    """What nobody looked at for a week goes by itself."""
    await refuse(rig, bad(glance))
    rig.clock.now += timedelta(days=6).total_seconds()
    assert (await rig.evictions.run("interval")).dropped == ()
    rig.clock.now += timedelta(days=2).total_seconds()
    planned = (await rig.evictions.plan()).drop
    done = await rig.evictions.run("interval")
    assert [str(each.name.image_id) for each in done.dropped] == [planned[0].name.image_id]
    assert list(rig.layout.quarantine.iterdir()) == []


async def test_a_download_takes_the_room_of_the_quarantine_before_that_of_a_base(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """What a hostile image has left here costs nobody a base."""
    eviction = {"max_size": 14 * MIB, "min_age": 0, "min_free": 0}
    async with rig_on(tmp_path, glance.url, eviction=eviction) as rig:
        base = (await rig.bases.ensure(glance.add(os.urandom(4 * MIB)), NOBODY)).base
        rig.clock.now += 10
        await refuse(rig, bad(glance, 4 * MIB))
        rig.clock.now += 10
        await rig.bases.ensure(glance.add(os.urandom(8 * MIB)), NOBODY)
        assert lying(rig) == []
        assert await rig.parts.catalog.base(base.base_id) is not None
        assert rig.metric("evictions_total", reason="max_size") == 0


async def test_what_never_fits_leaves_the_quarantine_alone(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """Nothing goes for an image that would not fit even then."""
    eviction = {"max_size": 10 * MIB, "min_age": 0, "min_free": 0}
    async with rig_on(tmp_path, glance.url, eviction=eviction) as rig:
        image_id = bad(glance, 4 * MIB)
        await refuse(rig, image_id)
        with pytest.raises(InsufficientSpaceError):
            await rig.bases.ensure(glance.add(os.urandom(11 * MIB)), NOBODY)
        assert ids(rig) == [image_id]


async def test_a_full_disk_is_worth_the_quarantine_first(rig: Rig, glance: LyingGlance) -> None:
    """A write that finds the file system full goes on in the room of a refused image."""
    idle = (await rig.bases.ensure(glance.add(os.urandom(MIB)), NOBODY)).base
    rig.clock.now += 10_000
    await refuse(rig, bad(glance, 4 * MIB))
    tries = AsyncMock(
        side_effect=[DiskFullError(required_bytes=MIB, available_bytes=0), CacheResult.HIT]
    )
    assert await rig.parts.room.retrying(tries) is CacheResult.HIT
    assert lying(rig) == []
    assert await rig.parts.catalog.base(idle.base_id) is not None


async def test_a_full_disk_costs_the_file_and_not_the_answer(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the record can be written, the refusal is told all the same."""

    def full(*_args: object) -> None:
        raise DiskFullError(required_bytes=4096, available_bytes=0)

    monkeypatch.setattr("cacheagent.backends.store.quarantine.keep", full)
    refusal = await refuse(rig, bad(glance))
    assert str(refusal).endswith("the file was not kept: it could not be moved to quarantine")
    assert rig.left_in_ingest() == []
    assert lying(rig) == []


async def test_a_start_keeps_pairs_and_collects_halves(rig: Rig, glance: LyingGlance) -> None:
    """What a crash left in the middle of the move is cleared away; what is whole stays."""
    kept, lost, torn = bad(glance), bad(glance), bad(glance)
    for image_id in (kept, lost, torn):
        rig.clock.now += 10
        await refuse(rig, image_id)
    for path in list(rig.layout.quarantine.iterdir()):
        is_record = path.suffix == ".json"
        if path.name.startswith(torn if is_record else lost):
            path.unlink()
    foreign = rig.layout.quarantine / "notes.txt"
    foreign.touch()
    await rig.reconcile.run(rig.parts.now())
    found = sorted(path.name.partition(".")[0] for path in rig.layout.quarantine.iterdir())
    assert found == sorted([kept, kept, "notes"])


async def test_the_status_lists_the_newest_first(rig: Rig, glance: LyingGlance) -> None:
    """An operator reads which images were refused, why, when, and what they take."""
    images = [bad(glance) for _ in range(2)]
    refusals = []
    for image_id in images:
        rig.clock.now += 10
        refusals.append(await refuse(rig, image_id))
    status = Status(rig.parts, bases=rig.bases, outcome=rig.evictions.outcome, access=rig.access)
    view = (await status.status(NOBODY)).quarantine
    assert [each.image_id for each in view.files] == images[::-1]
    assert [each.detail for each in view.files] == [str(each) for each in refusals[::-1]]
    assert (view.count, view.max_size) == (2, 5 << 30)
    assert view.allocated == sum(each.allocated for each in view.files) >= 2 * MIB
    await status.refresh_metrics()
    assert rig.metric("quarantine_files") == 2
    assert rig.metric("quarantine_bytes") == view.allocated


async def test_a_tenant_is_told_of_its_own_images_alone(rig: Rig, glance: LyingGlance) -> None:
    """A name, a rule and a detail are of an image that the token may have."""
    mine, other = bad(glance), bad(glance)
    for image_id in (mine, other):
        rig.clock.now += 10
        await refuse(rig, image_id)
    del glance.images[other]
    view = await Quarantine(rig.parts).view(TENANT, rig.access)
    assert [each.image_id for each in view.files] == [mine]


async def test_whom_nobody_knows_is_told_of_no_file(rig: Rig, glance: LyingGlance) -> None:
    """A status is answered, and names no image, while Glance does not know the token."""
    await refuse(rig, bad(glance))
    glance.accepts = {"other"}
    view = await Quarantine(rig.parts).view(TENANT, rig.access)
    assert (view.files, view.count) == ((), 1)


async def test_a_record_that_somebody_broke_hides_no_file(rig: Rig, glance: LyingGlance) -> None:
    """The name tells which image and which rule; only the words are missing."""
    refusal = await refuse(rig, bad(glance))
    (record,) = rig.layout.quarantine.glob("*.json")
    record.chmod(0o600)
    record.write_text("{")
    (file,) = (await Quarantine(rig.parts).view(NOBODY, rig.access)).files
    assert (file.reason, file.detail) == (refusal.reason, "")


@pytest.mark.parametrize("command", ["info", "check", "convert"])
@pytest.mark.parametrize("signal_name", ["KILL", "TERM"])
async def test_a_qemu_img_that_the_host_killed_says_nothing_of_the_image(
    tmp_path: Path, glance: LyingGlance, command: str, signal_name: str
) -> None:
    """It is worth another try, goes on from what has come, and nothing is quarantined."""
    program = tmp_path / "stand-in"
    marker = tmp_path / "killed"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = {command} ] && [ ! -e {marker} ]; then\n'
        f'touch {marker}; kill -{signal_name} $$; fi\nexec qemu-img "$@"\n'
    )
    program.chmod(0o755)
    made = tmp_path / "disk.qcow2"
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", "qcow2", str(made), "2M"
    )
    assert await process.wait() == 0
    data = await asyncio.to_thread(made.read_bytes)
    async with rig_on(tmp_path, glance.url, qemu={"qemu_img": str(program)}) as rig:
        image_id = glance.add(data, disk_format="qcow2", virtual_size=2 * MIB)
        with pytest.raises(HostUnavailableError, match=f"was killed by SIG{signal_name}"):
            await rig.bases.ensure(image_id, NOBODY)
        assert lying(rig) == []
        assert f"{image_id}.part" in rig.left_in_ingest()
        assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.MISS
        assert rig.left_in_ingest() == []
