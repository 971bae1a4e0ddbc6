"""After an upgrade: what older rules let in is looked at by those of now before anybody gets it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    GlanceUnavailableError,
    HostUnavailableError,
    ImageUnacceptableError,
    QemuImgError,
)
from cacheagent.model import BaseState, CacheResult, Caller, DiskSpec, ImageId, ImageState
from cacheagent.policy.verdict import summary
from cacheagent.service.events import EventKind
from cacheagent.service.reinspect import Reinspect
from cacheagent.sync.throttle import Throttle
from tests.fakes.lying_glance import no_answer
from tests.fakes.values import disk_key
from tests.service.trusting import (
    NOBODY,
    bring,
    make_old,
    path_of,
    plant,
    qcow2_of,
    row_of,
    spoil,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.model import Base
    from cacheagent.service.events import Event
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = os.urandom(2 * MIB)
UNHURRIED = Throttle(None)


@pytest.fixture
def reinspect(rig: Rig) -> Reinspect:
    """Give what is tested."""
    return Reinspect(rig.parts, rig.bases, rig.repair)


async def inspect_all(reinspect: Reinspect) -> None:
    """Do what the loop does until nothing is due."""
    while (base := await reinspect.due(())) is not None:
        assert await reinspect.reinspect(base, UNHURRIED)
    await reinspect.withdraw()


async def converted(rig: Rig, glance: LyingGlance, folder: Path) -> tuple[ImageId, Base]:
    """Bring a qcow2 image in, of which a conversion makes a raw base of older rules."""
    image = await asyncio.to_thread(qcow2_of, DATA, folder)
    wanted = glance.add(image, disk_format="qcow2", virtual_size=len(DATA))
    base = await bring(rig, wanted)
    await make_old(rig, base)
    glance.seen.clear()
    return wanted, base


# --- kept as it came -----------------------------------------------------------------------------


async def test_request_has_a_base_inspected_first(rig: Rig, glance: LyingGlance) -> None:
    """A request for a base of older rules has the file read again, and Glance is not needed."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    await make_old(rig, base)
    glance.seen.clear()
    glance.always("show", no_answer())
    found = await rig.bases.ensure(wanted, NOBODY)
    assert (found.result, found.base.base_id) == (CacheResult.HIT, base.base_id)
    assert found.base.inspection_version == rig.parts.inspection_version
    assert (await row_of(rig, base)).inspection_version == rig.parts.inspection_version
    manifest = await rig.parts.store.read_manifest(base.base_id, base.format)
    assert manifest is not None
    assert manifest.base.inspection_version == rig.parts.inspection_version
    assert glance.seen == []
    assert rig.metric("reinspections_total", result="passed") == 1


async def test_crowd_has_a_base_inspected_once(rig: Rig, glance: LyingGlance) -> None:
    """However many ask at once, the file is read once."""
    wanted = glance.add(DATA)
    await make_old(rig, await bring(rig, wanted))
    await asyncio.gather(*(rig.bases.ensure(wanted, NOBODY) for _ in range(10)))
    assert rig.metric("reinspections_total", result="passed") == 1


async def test_bases_are_inspected_in_the_background(
    rig: Rig, glance: LyingGlance, reinspect: Reinspect
) -> None:
    """Nobody has to ask: after a round every base was let in by the rules of now."""
    bases = [await bring(rig, glance.add(DATA + bytes([number]))) for number in range(3)]
    for base in bases:
        await make_old(rig, base)
    assert await reinspect.due(()) is not None
    assert rig.metric("bases_of_older_rules") == 3
    await inspect_all(reinspect)
    versions = {(await row_of(rig, base)).inspection_version for base in bases}
    assert versions == {rig.parts.inspection_version}
    assert rig.metric("bases_of_older_rules") == 0
    assert rig.metric("reinspections_total", result="passed") == 3


async def test_another_image_of_the_content_waits_for_it_too(rig: Rig, glance: LyingGlance) -> None:
    """An image that is new here, with the content of a base of older rules, has that inspected."""
    base = await bring(rig, glance.add(DATA))
    await make_old(rig, base)
    found = await rig.bases.ensure(glance.add(DATA), NOBODY)
    assert (found.result, found.base.base_id) == (CacheResult.HIT, base.base_id)
    assert (await row_of(rig, base)).inspection_version == rig.parts.inspection_version
    assert len(glance.calls("data")) == 1


async def test_rotten_base_is_fetched_anew(rig: Rig, glance: LyingGlance) -> None:
    """A base that is no longer what it was is not taken for inspected: it comes again."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    await make_old(rig, base)
    await asyncio.to_thread(spoil, path_of(rig, base), b"rot")
    found = await rig.bases.ensure(wanted, NOBODY)
    assert found.result is CacheResult.MISS
    assert await asyncio.to_thread(path_of(rig, base).read_bytes) == DATA
    assert (await row_of(rig, base)).state is BaseState.READY


async def test_rotten_base_is_found_in_the_background(
    rig: Rig, glance: LyingGlance, reinspect: Reinspect
) -> None:
    """One that nobody asks for goes to quarantine, as the scrubber would have it."""
    base = await bring(rig, glance.add(DATA))
    await make_old(rig, base)
    await asyncio.to_thread(spoil, path_of(rig, base), b"rot")
    await inspect_all(reinspect)
    assert (await row_of(rig, base)).state is BaseState.QUARANTINED
    assert rig.metric("scrub_failures_total") == 1


# --- refused now ---------------------------------------------------------------------------------


@pytest.fixture
async def hidden(rig: Rig, tmp_path: Path) -> tuple[ImageId, Base]:
    """Let older rules have taken a qcow2 image for a raw one (CVE-2024-40767)."""
    image = await asyncio.to_thread(qcow2_of, DATA, tmp_path)
    wanted = ImageId("6a2f41a3-c54c-4f6e-9bd0-0f0a1c6f2e11")
    return wanted, await plant(rig, image, wanted)


async def told(rig: Rig, kind: EventKind) -> Event:
    """Wait for an event of the kind, from the beginning on."""
    async for event in rig.parts.events.follow("0-0"):
        if event.kind is kind:
            return event
    raise AssertionError(kind)


async def test_base_that_newer_rules_refuse_is_never_handed_out(
    rig: Rig, hidden: tuple[ImageId, Base]
) -> None:
    """Requests get the rule that it breaks; the file is read for the first of them alone."""
    wanted, base = hidden
    for _ in range(3):
        with pytest.raises(ImageUnacceptableError, match="the content is qcow2") as caught:
            await rig.bases.ensure(wanted, NOBODY)
        assert caught.value.reason == "format-mismatch"
    assert rig.metric("reinspections_total", result="refused") == 1
    event = await told(rig, EventKind.BASE_REFUSED)
    assert (event.facts["base_id"], event.facts["reason"]) == (base.base_id, "format-mismatch")


async def test_refused_base_is_shown_as_such(rig: Rig, hidden: tuple[ImageId, Base]) -> None:
    """The list and ``why`` say that nobody gets it, and for which rule."""
    wanted, _ = hidden
    before = await rig.images.show(wanted, NOBODY)
    assert "by older rules" in summary(before, None)
    with pytest.raises(ImageUnacceptableError):
        await rig.bases.ensure(wanted, NOBODY)
    view = await rig.images.show(wanted, NOBODY)
    assert view.state is ImageState.QUARANTINED
    assert "the content is qcow2" in (view.error or "")
    assert "the content is qcow2" in summary(view, None)


async def test_unused_refused_base_goes_to_quarantine(
    rig: Rig, reinspect: Reinspect, hidden: tuple[ImageId, Base]
) -> None:
    """Found in the background, and used by nobody, it leaves the folder of bases."""
    _, base = hidden
    await inspect_all(reinspect)
    assert (await row_of(rig, base)).state is BaseState.QUARANTINED
    assert not path_of(rig, base).exists()
    assert rig.layout.quarantined(base.base_id, base.format).exists()


async def test_refused_base_stays_where_it_is_used(
    rig: Rig, glance: LyingGlance, reinspect: Reinspect
) -> None:
    """The file of a refused base is not taken from disks; it goes when the last one has gone."""
    wanted = glance.add(DATA)
    key = disk_key(1)
    base = await bring(rig, wanted)
    await rig.disks.create(key, DiskSpec(image_id=wanted, size=4 * MIB), Caller())
    await make_old(rig, base)
    error = ImageUnacceptableError("banned", "a rule of the future")
    rig.bases.trust.refuse(await row_of(rig, base), error)
    assert reinspect.found.is_set()
    await inspect_all(reinspect)
    assert (await row_of(rig, base)).state is BaseState.READY
    assert path_of(rig, base).exists()
    with pytest.raises(ImageUnacceptableError, match="a rule of the future"):
        await rig.disks.create(disk_key(2), DiskSpec(image_id=wanted, size=4 * MIB), Caller())
    await rig.disks.delete(key)
    await inspect_all(reinspect)
    assert (await row_of(rig, base)).state is BaseState.QUARANTINED
    assert not path_of(rig, base).exists()


async def test_refusal_is_for_older_rules_and_one_content(rig: Rig, glance: LyingGlance) -> None:
    """Neither a base of the rules of now nor one that came later is refused by an old verdict."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    trust, error = rig.bases.trust, ImageUnacceptableError("banned", "a rule")
    trust.refuse(base, error)
    assert trust.why_refused(base) is None
    old = replace(base, inspection_version=base.inspection_version - 1)
    trust.refuse(old, ImageUnacceptableError("signature-invalid", "of one image"))
    assert trust.why_refused(old) is None
    trust.refuse(old, error)
    assert trust.why_refused(old) is not None
    assert trust.why_refused(replace(old, fetched_at=rig.clock.epoch)) is None


# --- converted -----------------------------------------------------------------------------------


async def test_converted_base_is_compared_with_its_source(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """The source is fetched anew; what it gives is the file that is here, which stays the same."""
    wanted, base = await converted(rig, glance, tmp_path)
    file = path_of(rig, base).stat()
    found = await rig.bases.ensure(wanted, NOBODY)
    assert found.base.inspection_version == rig.parts.inspection_version
    assert len(glance.calls("data")) == 1
    again = path_of(rig, base).stat()
    assert (again.st_ino, again.st_mtime_ns) == (file.st_ino, file.st_mtime_ns)
    assert rig.left_in_ingest() == []
    assert (await row_of(rig, base)).fetched_at == base.fetched_at


async def test_converted_base_is_inspected_in_the_background(
    rig: Rig, glance: LyingGlance, tmp_path: Path, reinspect: Reinspect
) -> None:
    """Without a request its source is fetched anew as well, with the agent's own token."""
    _, base = await converted(rig, glance, tmp_path)
    await inspect_all(reinspect)
    assert (await row_of(rig, base)).inspection_version == rig.parts.inspection_version


async def test_converted_base_that_its_source_does_not_give_is_replaced(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """A file that an honest conversion does not make is damaged; the new one takes its name."""
    wanted, base = await converted(rig, glance, tmp_path)
    await asyncio.to_thread(spoil, path_of(rig, base), b"forged")
    found = await rig.bases.ensure(wanted, NOBODY)
    assert found.result is CacheResult.MISS
    assert await asyncio.to_thread(path_of(rig, base).read_bytes) == DATA
    event = await told(rig, EventKind.BASE_DAMAGED)
    assert event.facts["base_id"] == base.base_id


async def test_converted_base_is_not_served_while_glance_is_away(
    rig: Rig, glance: LyingGlance, tmp_path: Path, reinspect: Reinspect
) -> None:
    """Nobody can tell what it was made of, so the request is to be made again; nothing is lost."""
    wanted, base = await converted(rig, glance, tmp_path)
    glance.always("show", no_answer())
    with pytest.raises(GlanceUnavailableError):
        await rig.bases.ensure(wanted, NOBODY)
    assert not await reinspect.reinspect(await row_of(rig, base), UNHURRIED)
    assert rig.metric("reinspections_total", result="failed") == 1
    assert path_of(rig, base).exists()
    glance.truth("show")
    assert (await bring(rig, wanted)).base_id == base.base_id


async def test_converted_base_that_newer_rules_refuse_is_never_handed_out(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """The source is fetched once to find out, and requests get the rule from then on."""
    image = await asyncio.to_thread(qcow2_of, DATA, tmp_path)
    wanted = glance.add(image[: 3 * 65536], disk_format="qcow2", virtual_size=len(DATA))
    base = replace(
        await plant(rig, image[: 3 * 65536], wanted), source_format="qcow2", size=3 * 65536
    )
    await rig.parts.catalog.publish(base, (), rig.parts.now())
    for _ in range(2):
        with pytest.raises(ImageUnacceptableError) as caught:
            await rig.bases.ensure(wanted, NOBODY)
        assert caught.value.reason in {"truncated", "corrupt", "incomplete", "header"}
    assert len(glance.calls("data")) == 1
    assert rig.metric("reinspections_total", result="refused") == 1


# --- not told ------------------------------------------------------------------------------------


def _starve(rig: Rig, patch: pytest.MonkeyPatch, command: str) -> None:
    """Let a limit stop one command of qemu-img, as one that is too low for this host does."""

    async def stopped(_path: Path, _image_format: str) -> None:
        raise QemuImgError(f"qemu-img {command}: stopped by a limit", at_limit=True)

    patch.setattr(rig.parts.qemu, command, stopped)


async def test_limit_of_this_host_refuses_no_base(
    rig: Rig, glance: LyingGlance, reinspect: Reinspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets a base that could not be looked at, and it stays: later it may be."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    await make_old(rig, base)
    with monkeypatch.context() as patch:
        _starve(rig, patch, "info")
        with pytest.raises(HostUnavailableError, match="stopped by a limit"):
            await rig.bases.ensure(wanted, NOBODY)
        with pytest.raises(HostUnavailableError):
            await reinspect.reinspect(await row_of(rig, base), UNHURRIED)
        await reinspect.withdraw()
    assert (await row_of(rig, base)).state is BaseState.READY
    assert rig.metric("reinspections_total", result="refused") == 0
    assert (await rig.bases.ensure(wanted, NOBODY)).result is CacheResult.HIT


@pytest.mark.parametrize("command", ["info", "check"])
async def test_limit_of_this_host_refuses_no_converted_base(
    rig: Rig, glance: LyingGlance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Its source could not be looked at this time, which says nothing against what is here."""
    wanted, base = await converted(rig, glance, tmp_path)
    with monkeypatch.context() as patch:
        _starve(rig, patch, command)
        with pytest.raises(ImageUnacceptableError) as caught:
            await rig.bases.ensure(wanted, NOBODY)
        assert caught.value.reason == "limits"
    assert rig.bases.trust.why_refused(await row_of(rig, base)) is None
    assert (await bring(rig, wanted)).inspection_version == rig.parts.inspection_version
