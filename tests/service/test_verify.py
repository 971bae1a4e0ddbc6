"""Bases are read again: what is as it was, what is damaged, and what cannot be told."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import BaseInUseError, ImageNotFoundError
from cacheagent.model import BaseState, DiskSpec, UserKind, VerificationOutcome
from cacheagent.service.repair import Repair
from cacheagent.service.verify import Verify
from cacheagent.sync.throttle import Throttle
from tests.fakes.values import disk_key, image_id
from tests.service.rig import Rig, in_a_task, rig_on, until
from tests.service.trusting import NOBODY, bring, path_of, qcow2_of, row_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import Base
    from tests.fakes.lying_glance import LyingGlance

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
DATA = os.urandom(6 * MIB) + bytes(9 * MIB) + os.urandom(MIB + 1000)
UNHURRIED = Throttle(None)


def verify_on(rig: Rig) -> Verify:
    """Give what is tested."""
    repair = Repair(rig.parts, rig.bases, rig.use)
    return Verify(rig.parts, rig.bases, repair, access=rig.access)


@pytest.fixture
def verify(rig: Rig) -> Verify:
    """Give what is tested, on a rig with nothing special."""
    return verify_on(rig)


def flip(path: Path, offset: int = 5 * MIB) -> None:
    """Let one bit of a base rot."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o440)


async def test_sound_base_is_verified(rig: Rig, glance: LyingGlance, verify: Verify) -> None:
    """A raw image is compared with the digest that names it, holes included."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    done = await verify.verify(wanted, NOBODY)
    digest = hashlib.sha512(DATA).hexdigest()
    assert (done.outcome, done.algorithm) == (VerificationOutcome.VERIFIED, "sha512")
    assert (done.expected, done.actual, done.error) == (digest, digest, None)
    assert 0 < done.bytes_read < len(DATA)
    assert rig.metric("scrub_bytes_total") == done.bytes_read
    assert (await row_of(rig, base)).verified_at == rig.parts.now()


async def test_base_without_any_data_is_verified(
    rig: Rig, glance: LyingGlance, verify: Verify
) -> None:
    """Nothing is read where nothing lies, and the zeros count all the same."""
    wanted = glance.add(bytes(9 * MIB))
    await bring(rig, wanted)
    done = await verify.verify(wanted, NOBODY)
    assert (done.outcome, done.bytes_read) == (VerificationOutcome.VERIFIED, 0)


async def test_converted_base_is_recorded_first(
    rig: Rig, glance: LyingGlance, verify: Verify, tmp_path: Path
) -> None:
    """Its digest is that of sha256sum, stands in the manifest, and counts from then on."""
    data = DATA[: 12 * MIB]
    wanted = glance.add(await asyncio.to_thread(qcow2_of, data, tmp_path), disk_format="qcow2")
    base = await bring(rig, wanted)
    first = await verify.verify(wanted, NOBODY)
    digest = hashlib.sha256(data).hexdigest()
    assert (first.outcome, first.algorithm) == (VerificationOutcome.RECORDED, "sha256")
    assert (first.expected, first.actual) == (None, digest)
    manifest = await rig.parts.store.read_manifest(base.base_id, base.format)
    assert manifest is not None
    assert manifest.base == await row_of(rig, base)
    assert manifest.base.file_digest is not None
    assert manifest.base.file_digest.hex == digest
    second = await verify.verify(wanted, NOBODY)
    assert (second.outcome, second.expected) == (VerificationOutcome.VERIFIED, digest)
    flip(path_of(rig, base))
    third = await verify.verify(wanted, NOBODY)
    assert (third.outcome, third.expected) == (VerificationOutcome.DAMAGED, digest)


async def test_kept_qcow2_is_compared_with_what_glance_said(
    tmp_path: Path, glance: LyingGlance
) -> None:
    """An image that stays as it came needs no digest of its own."""
    image = await asyncio.to_thread(qcow2_of, DATA[:MIB], tmp_path)
    wanted = glance.add(image, disk_format="qcow2")
    async with in_a_task(rig_on(tmp_path, glance.url, images={"base_format": "keep"})) as rig:
        await bring(rig, wanted)
        done = await verify_on(rig).verify(wanted, NOBODY)
    assert (done.outcome, done.algorithm) == (VerificationOutcome.VERIFIED, "sha512")


async def test_one_bit_is_enough(rig: Rig, glance: LyingGlance, verify: Verify) -> None:
    """A base that rotted goes to quarantine, and nobody gets it any more."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    flip(path_of(rig, base))
    done = await verify.verify(wanted, NOBODY)
    assert done.outcome is VerificationOutcome.DAMAGED
    assert done.error == f"its sha512 is {done.actual}, not {done.expected}"
    assert (await row_of(rig, base)).state is BaseState.QUARANTINED
    assert not path_of(rig, base).exists()
    assert rig.metric("scrub_failures_total") == 1
    again = await verify.verify(wanted, NOBODY)
    assert (again.outcome, again.error) == (VerificationOutcome.DAMAGED, "it is in quarantine")


async def test_rotten_base_of_a_disk_is_fetched_anew(
    rig: Rig, glance: LyingGlance, verify: Verify
) -> None:
    """The disk has a sound base soon after."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    await rig.disks.create(disk_key(1), DiskSpec(image_id=wanted, size=None), NOBODY)
    flip(path_of(rig, base))
    await verify.verify(wanted, NOBODY)
    await until(path_of(rig, base).exists)
    assert path_of(rig, base).read_bytes() == DATA


async def test_base_that_was_cut_is_damaged(rig: Rig, glance: LyingGlance, verify: Verify) -> None:
    """A shorter file is not what it was, whatever is left of it."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    path_of(rig, base).chmod(0o600)
    os.truncate(path_of(rig, base), MIB)
    done = await verify.verify(wanted, NOBODY)
    assert (done.outcome, done.error) == (
        VerificationOutcome.DAMAGED,
        f"its file is {MIB} bytes long",
    )
    assert (await row_of(rig, base)).state is BaseState.QUARANTINED


async def test_base_that_was_taken_away_is_forgotten(
    rig: Rig, glance: LyingGlance, verify: Verify
) -> None:
    """Whoever asks is told, and so is the next one."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    path_of(rig, base).unlink()
    done = await verify.verify(wanted, NOBODY)
    assert done.outcome is VerificationOutcome.DAMAGED
    with pytest.raises(ImageNotFoundError):
        await verify.verify(wanted, NOBODY)


@pytest.mark.parametrize(
    ("number", "state"),
    [(errno.EIO, BaseState.QUARANTINED), (errno.EACCES, BaseState.READY)],
)
async def test_device_that_fails_is_damage_and_other_errors_are_none(
    rig: Rig,
    glance: LyingGlance,
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    state: BaseState,
) -> None:
    """Only what says that the bytes are gone costs the base."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)

    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fail)
    if state is BaseState.READY:
        with pytest.raises(OSError, match=os.strerror(number)):
            await verify.verify(wanted, NOBODY)
    else:
        assert (await verify.verify(wanted, NOBODY)).outcome is VerificationOutcome.DAMAGED
    assert (await row_of(rig, base)).state is state


async def test_image_that_is_not_here_has_nothing_to_verify(verify: Verify) -> None:
    """There is no base to read."""
    with pytest.raises(ImageNotFoundError):
        await verify.verify(image_id(1), NOBODY)


@pytest.fixture
async def held_up(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Hold up a reading behind each block until the test lets it go on."""
    gate = asyncio.Event()

    async def take(_throttle: Throttle, _bytes: int) -> None:
        await gate.wait()

    monkeypatch.setattr(Throttle, "take", take)
    yield gate
    gate.set()


async def reading(rig: Rig, verify: Verify, base: Base) -> asyncio.Task[object]:
    """Begin to read a base, and give the reader when it has begun."""
    task: asyncio.Task[object] = asyncio.create_task(verify.verify_base(base, UNHURRIED))
    await until(lambda: rig.metric("scrub_bytes_total"))
    return task


async def test_base_is_leased_while_it_is_read(
    rig: Rig, glance: LyingGlance, verify: Verify, held_up: asyncio.Event
) -> None:
    """Nobody evicts it meanwhile; afterwards anybody may."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    task = await reading(rig, verify, base)
    users = await rig.use.proved(base)
    assert [(user.kind, user.detail) for user in users] == [(UserKind.LEASE, "verification")]
    with pytest.raises(BaseInUseError):
        await rig.images.evict(wanted, NOBODY)
    held_up.set()
    await task
    await rig.images.evict(wanted, NOBODY)


async def test_reading_ends_between_two_blocks(
    rig: Rig, glance: LyingGlance, verify: Verify, held_up: asyncio.Event
) -> None:
    """A stop does not wait for a whole base, leaves no lease, and claims nothing."""
    wanted = glance.add(DATA)
    base = await bring(rig, wanted)
    task = await reading(rig, verify, base)
    task.cancel()
    await asyncio.wait({task})
    assert not held_up.is_set()
    assert await rig.parts.catalog.leases(rig.parts.now()) == []
    assert (await row_of(rig, base)).verified_at is None


async def test_every_block_that_is_read_is_paced(
    rig: Rig, glance: LyingGlance, verify: Verify
) -> None:
    """What a reading takes from the device stays within the rate; holes take nothing."""
    now, slept = 0.0, 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now, slept
        now += seconds
        slept += seconds

    base = await bring(rig, glance.add(DATA))
    done = await verify.verify_base(base, Throttle(MIB, lambda: now, sleep))
    assert done is not None
    last_block = done.bytes_read % (4 * MIB)
    assert slept == pytest.approx((done.bytes_read - last_block) / MIB, abs=0.2)


@pytest.mark.parametrize("refused_at", ["open", "read"])
async def test_file_system_without_direct_io_is_read_all_the_same(
    rig: Rig,
    glance: LyingGlance,
    verify: Verify,
    monkeypatch: pytest.MonkeyPatch,
    refused_at: str,
) -> None:
    """On a tmpfs, say, the page cache is in between, and the digest is the same."""
    wanted = glance.add(DATA)
    await bring(rig, wanted)
    really_open, really_read = os.open, os.preadv

    def refuse(flags: int) -> None:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def opening(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        refuse(flags)
        return really_open(path, flags, mode, dir_fd=dir_fd)

    def read(fd: int, buffers: list[memoryview], offset: int) -> int:
        refuse(fcntl.fcntl(fd, fcntl.F_GETFL))
        return really_read(fd, buffers, offset)

    if refused_at == "open":
        monkeypatch.setattr(os, "open", opening)
    else:
        monkeypatch.setattr(os, "preadv", read)
    assert (await verify.verify(wanted, NOBODY)).outcome is VerificationOutcome.VERIFIED
