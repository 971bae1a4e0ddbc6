"""What the catalog remembers, and what it refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.catalog import Around, Catalog, DiskIntent
from cacheagent.backends.catalog.claims import Claim
from cacheagent.errors import CatalogError, DiskNotFoundError, DiskTooSmallError
from cacheagent.model import (
    BaseState,
    CachedImage,
    Digest,
    DiskFormat,
    DiskMode,
    DiskSpec,
    DiskState,
    FileSystem,
    ImageSignature,
    Standing,
    User,
    UserKind,
)
from cacheagent.policy.boot import KERNEL, RAMDISK
from tests.fakes.values import (
    NOW,
    base,
    base_id,
    disk,
    disk_key,
    glance_image,
    image_id,
    instance_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import Base, Disk

LATER = NOW + timedelta(hours=1)
EARLIER = NOW - timedelta(hours=1)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    """Give an empty catalog."""
    opened = await Catalog.open(tmp_path / "catalog.db")
    yield opened
    await opened.close()


# --- images -------------------------------------------------------------------------------------


async def test_an_intent_to_ingest_is_an_image_without_a_base(catalog: Catalog) -> None:
    """A download that has begun can be seen, with all that Glance said."""
    await catalog.intend_image(glance_image(1), NOW)
    expected = CachedImage(image=glance_image(1), base_id=None, requested_at=NOW)
    assert await catalog.image(image_id(1)) == expected
    assert await catalog.images() == [expected]
    assert await catalog.image(image_id(2)) is None


async def test_a_second_intent_refreshes_the_description_only(catalog: Catalog) -> None:
    """Asking again for an image takes in what changed in Glance, and loses nothing."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    renamed = replace(glance_image(1), name="renamed")
    await catalog.intend_image(renamed, LATER)
    assert await catalog.image(image_id(1)) == CachedImage(
        image=renamed, base_id=base_id(1), requested_at=NOW
    )


async def test_an_id_that_stands_for_other_content_lets_its_base_go(catalog: Catalog) -> None:
    """After a purge Glance may give an id again (OSSN-0075): nobody gets the old content by it."""
    await catalog.publish(base(1), [glance_image(1), glance_image(2)], NOW)
    reused = replace(glance_image(2), image_id=image_id(1))
    await catalog.intend_image(reused, LATER)
    assert await catalog.image(image_id(1)) == CachedImage(
        image=reused, base_id=None, requested_at=NOW
    )
    assert [each.image.image_id for each in await catalog.images_of(base_id(1))] == [image_id(2)]
    assert await catalog.bases() == [base(1)]


async def test_an_image_whose_digest_nobody_says_keeps_its_base(catalog: Catalog) -> None:
    """Without a digest there is nothing that speaks against the base."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    silent = replace(glance_image(1), os_hash_algo=None, os_hash_value=None)
    await catalog.intend_image(silent, LATER)
    cached = await catalog.image(image_id(1))
    assert cached == CachedImage(image=silent, base_id=base_id(1), requested_at=NOW)


async def test_what_glance_says_of_an_image_is_remembered_until_it_says_otherwise(
    catalog: Catalog,
) -> None:
    """A deactivated image is known as such, and counts as active once it is asked for again."""
    await catalog.publish(base(1), [glance_image(1), glance_image(2)], NOW)
    await catalog.set_standing(image_id(1), Standing.DEACTIVATED)
    assert [each.standing for each in await catalog.images_of(base_id(1))].count(
        Standing.DEACTIVATED
    ) == 1
    await catalog.intend_image(glance_image(1), LATER)
    assert {each.standing for each in await catalog.images()} == {Standing.ACTIVE}


async def test_an_image_that_failed_is_forgotten(catalog: Catalog) -> None:
    """An ingest that failed for good leaves no row; to forget twice is fine."""
    await catalog.intend_image(glance_image(1), NOW)
    await catalog.forget_image(image_id(1))
    await catalog.forget_image(image_id(1))
    assert await catalog.images() == []


async def test_two_images_of_equal_content_share_a_base(catalog: Catalog) -> None:
    """An image can stand for a base that another image brought."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    assert await catalog.link_image(glance_image(2), base_id(1), LATER)
    found = await catalog.images_of(base_id(1))
    assert {each.image.image_id for each in found} == {image_id(1), image_id(2)}


@pytest.mark.parametrize("state", [BaseState.EVICTING, BaseState.QUARANTINED, None])
async def test_no_image_is_linked_to_a_base_on_its_way_out(
    catalog: Catalog, state: BaseState | None
) -> None:
    """Only a READY base gets another image; the intent of the image stays."""
    if state is not None:
        await catalog.publish(base(1, state=state), [], NOW)
    await catalog.intend_image(glance_image(2), NOW)
    assert not await catalog.link_image(glance_image(2), base_id(1), NOW)
    cached = await catalog.image(image_id(2))
    assert cached is not None
    assert cached.base_id is None


# --- bases --------------------------------------------------------------------------------------


async def test_a_published_base_is_there_with_its_images(catalog: Catalog) -> None:
    """One step makes the base visible and ends the intents of its images."""
    await catalog.intend_image(glance_image(1), EARLIER)
    await catalog.publish(base(1), [glance_image(1), glance_image(2)], NOW)
    assert await catalog.base(base_id(1)) == base(1)
    assert await catalog.bases() == [base(1)]
    first, second = [await catalog.image(image_id(number)) for number in (1, 2)]
    assert first == CachedImage(image=glance_image(1), base_id=base_id(1), requested_at=EARLIER)
    assert second == CachedImage(image=glance_image(2), base_id=base_id(1), requested_at=NOW)


async def test_a_base_that_comes_again_replaces_its_row(catalog: Catalog) -> None:
    """A base fetched anew, say in another format, is what the catalog tells from then on."""
    await catalog.publish(base(1, state=BaseState.QUARANTINED), [glance_image(1)], NOW)
    again = base(1, format=DiskFormat.QCOW2, fetched_at=LATER, last_used_at=LATER)
    await catalog.publish(again, [glance_image(1)], LATER)
    assert await catalog.bases() == [again]


async def test_the_state_of_a_base_has_one_setter(catalog: Catalog) -> None:
    """A base changes its state; INGESTING is none for a base."""
    await catalog.publish(base(1), [], NOW)
    await catalog.set_base_state(base_id(1), BaseState.QUARANTINED)
    assert await catalog.base(base_id(1)) == base(1, state=BaseState.QUARANTINED)
    with pytest.raises(CatalogError, match="CHECK"):
        await catalog.set_base_state(base_id(1), BaseState.INGESTING)
    assert await catalog.base(base_id(1)) == base(1, state=BaseState.QUARANTINED)


async def test_an_eviction_takes_base_and_images(catalog: Catalog) -> None:
    """A base that nothing holds becomes EVICTING, then goes with its images, not with pins."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    await catalog.pin(image_id(2), NOW)
    assert await catalog.begin_eviction(base_id(1), NOW) == ()
    assert await catalog.base(base_id(1)) == base(1, state=BaseState.EVICTING)
    await catalog.remove_base(base_id(1))
    assert await catalog.bases() == []
    assert await catalog.images() == []
    assert await catalog.pins() == {image_id(2)}


async def test_a_pin_stops_an_eviction(catalog: Catalog) -> None:
    """A base stays READY while one of its images is pinned, and the pin is named."""
    await catalog.publish(base(1), [glance_image(1), glance_image(2)], NOW)
    await catalog.pin(image_id(2), NOW)
    pinned = User(kind=UserKind.PIN, detail=image_id(2))
    assert await catalog.begin_eviction(base_id(1), NOW) == (pinned,)
    assert await catalog.base(base_id(1)) == base(1)


@pytest.mark.parametrize(
    ("state", "mode", "holds"),
    [
        (DiskState.PENDING, DiskMode.OVERLAY, True),
        (DiskState.PENDING, DiskMode.FULL, True),
        (DiskState.READY, DiskMode.OVERLAY, True),
        (DiskState.READY, DiskMode.FULL, False),
        (DiskState.FAILED, DiskMode.OVERLAY, False),
        (DiskState.FAILED, DiskMode.FULL, False),
    ],
)
async def test_disks_that_need_their_base_stop_an_eviction(
    catalog: Catalog,
    state: DiskState,
    mode: DiskMode,
    holds: bool,  # noqa: FBT001 a row of the table
) -> None:
    """Overlays, and copies that are being made, hold a base; finished copies do not."""
    found = disk(disk_key(1), 1, state=state, mode=mode)
    await catalog.publish(base(1), [glance_image(1)], NOW)
    await catalog.adopt(disks=[found])
    users = (User(kind=UserKind.DISK, key=disk_key(1)),) if holds else ()
    assert await catalog.disks_of_base(base_id(1)) == ([found] if holds else [])
    assert await catalog.begin_eviction(base_id(1), NOW) == users


async def test_a_disk_keeps_the_name_of_a_base_that_was_lost(catalog: Catalog) -> None:
    """An overlay whose base was lost is its user again once the base is back."""
    await catalog.adopt(bases=[base(1)], disks=[disk(disk_key(1), 1)])
    await catalog.remove_base(base_id(1))
    await catalog.publish(base(1), [], NOW)
    assert await catalog.disks_of_base(base_id(1)) == [disk(disk_key(1), 1)]


async def test_what_was_proved_of_a_base_is_remembered(catalog: Catalog) -> None:
    """The version of the rules and the signatures that hold are noted, and nothing else changes."""
    signed = ImageSignature(
        value="c2lnbmVk", hash_method="SHA-256", key_type="RSA-PSS", certificate=image_id(9)
    )
    await catalog.publish(base(1), [glance_image(1)], NOW)
    proved = replace(base(1), inspection_version=7, signatures=(signed,))
    await catalog.set_proved(replace(proved, size=5))
    assert await catalog.base(base_id(1)) == proved


# --- what belongs to a disk --------------------------------------------------------------------


async def test_a_disk_comes_with_what_belongs_to_it(catalog: Catalog) -> None:
    """Its base, and other disks of its instance by their names; with these its image too."""
    root, kernel = disk(disk_key(1), 1), disk(disk_key(1, "kernel"), None)
    await catalog.publish(base(1), [glance_image(1)], NOW)
    await catalog.adopt(disks=[root, disk(disk_key(2, "kernel"), None)])
    assert await catalog.disk_around(disk_key(3), [KERNEL]) is None
    found = await catalog.disk_around(root.key, [KERNEL, RAMDISK])
    assert found == (root, Around(base=base(1), image=None, disks=()))
    await catalog.adopt(disks=[kernel])
    image = await catalog.image(image_id(1))
    around = Around(base=base(1), image=image, disks=(kernel,))
    assert await catalog.around(root, [RAMDISK, KERNEL]) == around
    assert await catalog.around(root, []) == replace(around, image=None, disks=())
    blank = disk(disk_key(1, "swap"), None)
    assert await catalog.around(blank, [KERNEL]) == Around(base=None, image=None, disks=(kernel,))


async def test_images_and_bases_are_given_by_their_ids(catalog: Catalog) -> None:
    """One that nobody knows is left out."""
    for number in (1, 2):
        await catalog.publish(base(number), [glance_image(number)], NOW)
    found = await catalog.images_named([image_id(2), image_id(3)])
    assert found == [await catalog.image(image_id(2))]
    assert await catalog.bases_named([base_id(2), base_id(3)]) == [base(2)]


# --- disks --------------------------------------------------------------------------------------


async def test_a_disk_is_pending_then_ready(catalog: Catalog) -> None:
    """Intent, then deed: a disk is PENDING until it is finished, and its base was used then."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    wanted = disk(disk_key(1), 1, virtual_size=0)
    assert await catalog.begin_disk(wanted) is DiskIntent.RECORDED
    assert await catalog.disk(disk_key(1)) == replace(wanted, state=DiskState.PENDING)
    made = await catalog.finish_disk(disk_key(1), virtual_size=5 << 30, now=LATER)
    assert made == replace(wanted, virtual_size=5 << 30)
    assert await catalog.disk(disk_key(1)) == made
    assert await catalog.base(base_id(1)) == base(1, last_used_at=LATER)


async def test_a_blank_disk_has_no_base(catalog: Catalog) -> None:
    """A disk without image and base is recorded with all that was asked for."""
    spec = DiskSpec(
        image_id=None,
        size=1 << 30,
        format=DiskFormat.RAW,
        mode=DiskMode.FULL,
        filesystem=FileSystem.XFS,
        label="data",
    )
    blank = disk(disk_key(1), None, spec=spec, format=DiskFormat.RAW, mode=DiskMode.FULL)
    assert await catalog.begin_disk(blank) is DiskIntent.RECORDED
    assert await catalog.finish_disk(disk_key(1), virtual_size=2 << 30, now=NOW) == blank


@pytest.mark.parametrize("state", [BaseState.EVICTING, BaseState.QUARANTINED, None])
async def test_no_disk_is_begun_from_a_base_on_its_way_out(
    catalog: Catalog, state: BaseState | None
) -> None:
    """Who comes too late for a base hears so, and leaves no row."""
    if state is not None:
        await catalog.publish(base(1, state=state), [], NOW)
    assert await catalog.begin_disk(disk(disk_key(1), 1)) is DiskIntent.BASE_GONE
    assert await catalog.disks() == []


async def test_a_ready_disk_is_never_replaced(catalog: Catalog) -> None:
    """A name that is taken by a usable disk stays with it."""
    await catalog.adopt(bases=[base(1)], disks=[disk(disk_key(1), 1)])
    assert await catalog.begin_disk(disk(disk_key(1), None)) is DiskIntent.EXISTS
    assert await catalog.disk(disk_key(1)) == disk(disk_key(1), 1)


async def test_a_failed_disk_can_be_asked_for_again(catalog: Catalog) -> None:
    """A failure is kept with its reason until the next attempt takes its place."""
    await catalog.publish(base(1), [], NOW)
    await catalog.begin_disk(disk(disk_key(1), 1))
    await catalog.fail_disk(disk_key(1), "no room")
    failed = disk(disk_key(1), 1, state=DiskState.FAILED, error="no room")
    assert await catalog.disk(disk_key(1)) == failed
    assert await catalog.begin_disk(disk(disk_key(1), None)) is DiskIntent.RECORDED
    assert await catalog.disk(disk_key(1)) == disk(
        disk_key(1), None, state=DiskState.PENDING, error=None
    )


async def test_only_a_disk_that_was_begun_is_finished(catalog: Catalog) -> None:
    """To finish what nobody began is an error, not a disk."""
    with pytest.raises(DiskNotFoundError):
        await catalog.finish_disk(disk_key(1), virtual_size=1, now=NOW)


async def test_a_disk_of_a_base_that_is_here_is_claimed(catalog: Catalog) -> None:
    """Name, image and base are looked up, and the intent is written, in one transaction."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    wanted = disk(disk_key(1), 1, state=DiskState.PENDING)
    claim = await catalog.claim_disk(
        wanted, lambda _image, found: replace(wanted, base_id=found.base_id)
    )
    assert claim.intent == wanted
    assert claim.found is not None
    assert (claim.found[0].image, claim.found[1]) == (glance_image(1), base(1))
    assert await catalog.disk(disk_key(1)) == wanted
    assert await catalog.begin_eviction(base_id(1), NOW)


async def test_a_name_that_is_taken_is_not_claimed(catalog: Catalog) -> None:
    """Whatever has the name is given as it is, and stays."""
    await catalog.adopt(bases=[base(1)], disks=[disk(disk_key(1), 1)])
    claim = await catalog.claim_disk(disk(disk_key(1), 1), lambda *_: disk(disk_key(1), None))
    assert claim == Claim(there=disk(disk_key(1), 1))
    assert await catalog.disk(disk_key(1)) == disk(disk_key(1), 1)


@pytest.mark.parametrize("state", [BaseState.EVICTING, BaseState.QUARANTINED, None])
async def test_nothing_is_claimed_without_a_base_that_is_ready(
    catalog: Catalog, state: BaseState | None
) -> None:
    """Who comes too late for a base, or too early, hears so, and leaves no row."""
    wanted = disk(disk_key(1), 1)
    if state is not None:
        await catalog.publish(base(1, state=state), [glance_image(1)], NOW)
    assert await catalog.claim_disk(wanted, lambda *_: wanted) == Claim()
    await catalog.intend_image(glance_image(1), NOW)
    assert await catalog.claim_disk(wanted, lambda *_: wanted) == Claim()
    assert await catalog.disks() == []


async def test_nothing_is_claimed_from_a_base_that_does_not_fit(catalog: Catalog) -> None:
    """The caller's rules decide, and what they raise leaves nothing."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    wanted = disk(disk_key(1), 1)
    assert await catalog.claim_disk(wanted, lambda *_: None) == Claim()

    def refuse(_image: CachedImage, _base: Base) -> Disk:
        raise DiskTooSmallError(required_bytes=2, requested_bytes=1)

    with pytest.raises(DiskTooSmallError):
        await catalog.claim_disk(wanted, refuse)
    assert await catalog.disks() == []


async def test_several_disks_are_claimed_and_finished_at_once(catalog: Catalog) -> None:
    """A thread of its own does for many what a request does for one; one bad one harms none."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    keys = sorted(map(disk_key, (1, 2, 3)), key=lambda key: key.instance_id)
    wanted = [disk(key, 1, state=DiskState.PENDING) for key in keys]

    def too_small(_image: CachedImage, _base: Base) -> Disk:
        raise DiskTooSmallError(required_bytes=2, requested_bytes=1)

    fits = [lambda *_, each=each: each for each in wanted[:2]]
    claims = await asyncio.to_thread(
        catalog.claim_disks, list(zip(wanted, [*fits, too_small], strict=True))
    )
    assert [claim.intent for claim, _ in claims[:2]] == wanted[:2]
    assert isinstance(claims[2][1], DiskTooSmallError)
    assert await catalog.disks() == wanted[:2]
    rows = await asyncio.to_thread(catalog.finish_disks, wanted, LATER)
    made = [replace(each, state=DiskState.READY) for each in wanted[:2]]
    assert [row for row, _ in rows[:2]] == made
    assert isinstance(rows[2][1], DiskNotFoundError)
    assert await catalog.disks() == made


async def test_disks_are_listed_by_instance(catalog: Catalog) -> None:
    """Each instance has its own disks, in the order of their names."""
    disks = [disk(disk_key(1, name), None) for name in ("swap", "root")]
    await catalog.adopt(disks=[*disks, disk(disk_key(2), None)])
    assert await catalog.disks_of_instance(instance_id(1)) == disks[::-1]
    assert len(await catalog.disks()) == 3


async def test_states_of_many_instances_are_one_look(catalog: Catalog) -> None:
    """Whoever hears of many files asks once; an instance that nobody knows has no disks."""
    await catalog.adopt(disks=[disk(disk_key(number), None) for number in (1, 2)])
    await catalog.begin_disk(disk(disk_key(1, "swap"), None))
    assert await catalog.disk_states([instance_id(3), instance_id(1)]) == {
        disk_key(1): DiskState.READY,
        disk_key(1, "swap"): DiskState.PENDING,
    }


async def test_a_base_was_in_use_until_its_disk_went(catalog: Catalog) -> None:
    """To remove an overlay counts as a use of its base; to remove it twice changes nothing."""
    await catalog.adopt(bases=[base(1)], disks=[disk(disk_key(1), 1)])
    await catalog.remove_disk(disk_key(1), LATER)
    await catalog.remove_disk(disk_key(1), LATER + timedelta(hours=1))
    assert await catalog.disk(disk_key(1)) is None
    assert await catalog.base(base_id(1)) == base(1, last_used_at=LATER)


async def test_a_disk_that_failed_was_no_use(catalog: Catalog) -> None:
    """To remove a disk that never needed its base leaves the base as idle as it was."""
    failed = disk(disk_key(1), 1, state=DiskState.FAILED, error="no room")
    await catalog.adopt(bases=[base(1)], disks=[failed])
    await catalog.remove_disk(disk_key(1), LATER)
    assert await catalog.base(base_id(1)) == base(1)


async def test_last_use_never_goes_back(catalog: Catalog) -> None:
    """A clock that was set back does not make a base look idle for longer."""
    await catalog.adopt(bases=[base(1)], disks=[disk(disk_key(1), 1)])
    await catalog.remove_disk(disk_key(1), EARLIER)
    assert await catalog.base(base_id(1)) == base(1)


async def test_what_is_seen_in_use_was_used_now(catalog: Catalog) -> None:
    """To touch bases sets their last use, and never sets it back."""
    await catalog.adopt(bases=[base(1), base(2), base(3, last_used_at=LATER)])
    await catalog.touch([base_id(1), base_id(3), base_id(9)], LATER)
    assert await catalog.bases() == [
        base(1, last_used_at=LATER),
        base(2),
        base(3, last_used_at=LATER),
    ]


async def test_times_in_the_future_end_with_the_clock(catalog: Catalog) -> None:
    """After the clock was set back, no base stays young until it has caught up."""
    await catalog.adopt(
        bases=[base(1, fetched_at=LATER, last_used_at=LATER), base(2, last_used_at=EARLIER)]
    )
    await catalog.touch([], NOW)
    assert await catalog.bases() == [base(1), base(2, last_used_at=EARLIER)]


async def test_a_base_that_was_read_again_says_when(catalog: Catalog) -> None:
    """What a verification found is kept with the base."""
    await catalog.publish(base(1), [], NOW)
    digest = Digest("sha512", "7" * 128)
    await catalog.set_verified(base_id(1), digest, LATER)
    assert await catalog.base(base_id(1)) == replace(base(1), file_digest=digest, verified_at=LATER)


# --- pins, and all together ---------------------------------------------------------------------


async def test_pins_come_and_go(catalog: Catalog) -> None:
    """An image is pinned once, known or not, and unpinned without further ado."""
    await catalog.pin(image_id(1), NOW)
    await catalog.pin(image_id(1), LATER)
    assert await catalog.pins() == {image_id(1)}
    await catalog.unpin(image_id(1))
    await catalog.unpin(image_id(1))
    assert await catalog.pins() == frozenset()


async def test_adoption_keeps_what_is_known(catalog: Catalog) -> None:
    """What was found among the files fills gaps only; an intent gets the base that was found."""
    await catalog.publish(base(1), [glance_image(1)], NOW)
    await catalog.intend_image(glance_image(2), NOW)
    await catalog.begin_disk(disk(disk_key(1), 1))
    other = CachedImage(
        image=replace(glance_image(1), name="other"), base_id=base_id(2), requested_at=LATER
    )
    missing = CachedImage(image=glance_image(2), base_id=base_id(2), requested_at=LATER)
    await catalog.adopt(
        bases=[base(1, allocated=7), base(2)],
        images=[other, missing],
        disks=[disk(disk_key(1), None), disk(disk_key(2), 2)],
    )
    assert await catalog.bases() == [base(1), base(2)]
    first, second = [await catalog.image(image_id(number)) for number in (1, 2)]
    assert first == CachedImage(image=glance_image(1), base_id=base_id(1), requested_at=NOW)
    assert second == replace(missing, requested_at=NOW)
    assert await catalog.disk(disk_key(1)) == disk(disk_key(1), 1, state=DiskState.PENDING)
    assert await catalog.disk(disk_key(2)) == disk(disk_key(2), 2)


async def test_an_adoption_is_all_or_nothing(catalog: Catalog) -> None:
    """An image that names a base which is not there undoes the whole adoption."""
    stray = CachedImage(image=glance_image(1), base_id=base_id(9), requested_at=NOW)
    with pytest.raises(CatalogError, match="FOREIGN KEY"):
        await catalog.adopt(bases=[base(1)], images=[stray])
    assert await catalog.bases() == []
    assert await catalog.images() == []
