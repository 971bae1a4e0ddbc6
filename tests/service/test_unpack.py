"""Images in containers become bases: what is taken out, and what is refused on the way."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import ImageUnacceptableError, InsufficientSpaceError
from cacheagent.model import CacheResult, Caller, DiskFormat, ImageId
from tests.fakes.containers import COMPRESS, descriptor, ova, tar
from tests.fakes.images import made_by_qemu
from tests.needs import require_programs
from tests.service.rig import rig_on, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
CONTENT = os.urandom(3 * MIB) + bytes(5 * MIB) + b"the end of a disk".ljust(512, b"\0")


@pytest.fixture(scope="module")
def vmdk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give a VMDK as OVAs have them, with the content."""
    require_programs("qemu-img")
    path = tmp_path_factory.mktemp("vmdk") / "disk.vmdk"
    return made_by_qemu(path, "vmdk", "subformat=streamOptimized", CONTENT).read_bytes()


def add(glance: LyingGlance, data: bytes, container: str, disk_format: str = "vmdk") -> ImageId:
    """Store an image in a container, of which Glance does not know how large its disk is."""
    return glance.add(data, container_format=container, disk_format=disk_format, virtual_size=None)


async def refusal(rig: Rig, image_id: ImageId) -> str:
    """Ask for an image that is refused; give the reason, and see that nothing is left of it."""
    with pytest.raises(ImageUnacceptableError) as refused:
        await rig.bases.ensure(image_id, NOBODY)
    assert rig.left_in_ingest() == []
    assert list(rig.layout.bases.iterdir()) == []
    return refused.value.reason


async def content(rig: Rig, image_id: ImageId) -> bytes:
    """Bring an image, and give the bytes of its base, which has to be raw and all that is left."""
    ensured = await rig.bases.ensure(image_id, NOBODY)
    assert ensured.base.format is DiskFormat.RAW
    assert rig.left_in_ingest() == []
    return rig.layout.base(ensured.base.base_id, DiskFormat.RAW).read_bytes()


# What is taken out.


@pytest.mark.parametrize("container", ["ova", "ovf"])
@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512", None])
async def test_archive(
    rig: Rig, glance: LyingGlance, vmdk: bytes, container: str, algorithm: str | None
) -> None:
    """The disk of an archive becomes the base, named by the digest of the whole archive."""
    data = ova(vmdk, len(CONTENT), algorithm=algorithm)
    image_id = add(glance, data, container)
    assert await content(rig, image_id) == CONTENT
    ensured = await rig.bases.ensure(image_id, NOBODY)
    assert ensured.base.base_id == f"sha512-{glance.images[image_id].metadata['os_hash_value']}"
    assert (ensured.base.source_format, ensured.base.size) == ("ova+vmdk", len(data))
    assert ensured.base.virtual_size == len(CONTENT)


@pytest.mark.parametrize("disk_format", ["raw", "vmdk"])
async def test_ovf_may_be_the_disk_itself(
    rig: Rig, glance: LyingGlance, vmdk: bytes, disk_format: str
) -> None:
    """What Glance calls an ovf is often a plain disk, and is taken as that."""
    data = {"raw": CONTENT, "vmdk": vmdk}[disk_format]
    assert await content(rig, add(glance, data, "ovf", disk_format)) == CONTENT


@pytest.mark.parametrize("how", COMPRESS)
async def test_compressed(rig: Rig, glance: LyingGlance, how: str) -> None:
    """A compressed disk is decompressed, however it was compressed; its zeros are holes."""
    data = COMPRESS[how](CONTENT)
    image_id = add(glance, data, "compressed", "raw")
    assert await content(rig, image_id) == CONTENT
    ensured = await rig.bases.ensure(image_id, NOBODY)
    assert ensured.base.source_format == "compressed+raw"
    path = rig.layout.base(ensured.base.base_id, DiskFormat.RAW)
    assert path.stat().st_blocks * 512 < 4 * MIB


async def test_compressed_disk_of_odd_length(rig: Rig, glance: LyingGlance) -> None:
    """A raw disk keeps the bytes that it has, and is found again although it ends in a sector."""
    odd = CONTENT + b"more"
    image_id = add(glance, COMPRESS["gzip"](odd), "compressed", "raw")
    assert await content(rig, image_id) == odd
    assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.HIT


async def test_what_is_unpacked_is_always_raw(
    tmp_path: Path, glance: LyingGlance, vmdk: bytes
) -> None:
    """``keep`` keeps what is as it came, and a qcow2 out of a stream is not."""
    qcow2 = made_by_qemu(tmp_path / "disk.qcow2", "qcow2", "", CONTENT).read_bytes()
    async with rig_on(tmp_path, glance.url, images={"base_format": "keep"}) as rig:
        image_id = add(glance, COMPRESS["zstd"](qcow2), "compressed", "qcow2")
        assert await content(rig, image_id) == CONTENT
        assert (await rig.bases.ensure(image_id, NOBODY)).result is CacheResult.HIT
        assert await content(rig, add(glance, ova(vmdk, len(CONTENT)), "ova")) == CONTENT


# Equal bytes.


@pytest.mark.parametrize("first", ["bare", "compressed"])
async def test_equal_bytes_in_another_container(rig: Rig, glance: LyingGlance, first: str) -> None:
    """The bytes of a stream and those of what is in it never stand for one another."""
    second = {"bare": "compressed", "compressed": "bare"}[first]
    data = COMPRESS["gzip"](CONTENT)
    base = (await rig.bases.ensure(add(glance, data, first, "raw"), NOBODY)).base
    path = rig.layout.base(base.base_id, base.format)
    before = path.read_bytes()
    with pytest.raises(ImageUnacceptableError) as refused:
        await rig.bases.ensure(add(glance, data, second, "raw"), NOBODY)
    assert refused.value.reason == "format-mismatch"
    assert path.read_bytes() == before
    again = await rig.bases.ensure(add(glance, data, first, "raw"), NOBODY)
    assert (again.result, again.base.base_id) == (CacheResult.HIT, base.base_id)


async def test_equal_bytes_without_a_digest(rig: Rig, glance: LyingGlance) -> None:
    """Where Glance has no digest the bytes come first, and mean another disk all the same."""
    data = COMPRESS["gzip"](CONTENT)
    old = {"os_hash_algo": None, "os_hash_value": None, "disk_format": "raw"}
    await rig.bases.ensure(glance.add(data, container_format="bare", **old), NOBODY)
    with pytest.raises(ImageUnacceptableError, match="equal bytes"):
        await rig.bases.ensure(glance.add(data, container_format="compressed", **old), NOBODY)


async def test_equal_archives_under_both_names(rig: Rig, glance: LyingGlance, vmdk: bytes) -> None:
    """An archive is the same base whether Glance calls it ova or ovf."""
    data = ova(vmdk, len(CONTENT))
    one = await rig.bases.ensure(add(glance, data, "ova"), NOBODY)
    other = await rig.bases.ensure(add(glance, data, "ovf"), NOBODY)
    assert (one.base.base_id, other.result) == (other.base.base_id, CacheResult.HIT)


# What is refused.


@pytest.mark.parametrize(
    ("container", "disk_format", "word"),
    [
        ("docker", "raw", "layers of files"),
        ("ami", "raw", "holds no disk"),
        ("ova", "qcow2", "is a vmdk"),
        ("compressed", "aki", "container of that name"),
        ("zip", "raw", "cannot be taken apart"),
        (None, "raw", "cannot be taken apart"),
        ("bare", "ploop", "OpenVZ"),
    ],
)
async def test_containers_that_are_refused(
    rig: Rig, glance: LyingGlance, container: str, disk_format: str, word: str
) -> None:
    """What cannot be taken apart is refused in words, before a byte is asked for."""
    image_id = add(glance, b"bytes", container, disk_format)
    with pytest.raises(ImageUnacceptableError, match=word):
        await rig.bases.ensure(image_id, NOBODY)
    assert glance.calls("data") == []


async def test_disk_that_is_not_what_glance_says(
    rig: Rig, glance: LyingGlance, vmdk: bytes
) -> None:
    """What comes out is judged as any image is, before qemu-img sees it."""
    inside = COMPRESS["gzip"](vmdk)
    assert await refusal(rig, add(glance, inside, "compressed", "raw")) == "format-mismatch"
    assert await refusal(rig, add(glance, inside, "compressed", "qcow2")) == "format-mismatch"
    archive = tar({"a.ovf": descriptor(CONTENT, len(CONTENT)), "disk.vmdk": CONTENT})
    assert await refusal(rig, add(glance, archive, "ova")) == "format-mismatch"


async def test_capacity_that_is_not_true(rig: Rig, glance: LyingGlance, vmdk: bytes) -> None:
    """A descriptor that tells of another size than the disk has is not believed."""
    assert await refusal(rig, add(glance, ova(vmdk, len(CONTENT) + 512), "ova")) == "ovf"


async def test_disk_longer_than_allowed(tmp_path: Path, glance: LyingGlance) -> None:
    """A bomb ends where ``images.max_size`` does, whatever is left of it."""
    bomb = COMPRESS["xz"](bytes(200 * MIB))
    async with rig_on(tmp_path, glance.url, images={"max_size": 20 * MIB}) as rig:
        assert await refusal(rig, add(glance, bomb, "compressed", "raw")) == "too-large"


async def test_room_is_set_aside_on_the_way(tmp_path: Path, glance: LyingGlance) -> None:
    """A stream that gives more than there is room for is refused with the figures."""
    image_id = add(glance, COMPRESS["gzip"](bytes(MIB) + os.urandom(MIB)), "compressed", "raw")
    bounds = {"max_size": 8 * MIB, "min_free": 0}
    async with rig_on(tmp_path, glance.url, eviction=bounds) as rig:
        with pytest.raises(InsufficientSpaceError):
            await rig.bases.ensure(image_id, NOBODY)
        assert not rig.layout.unpacked(image_id).exists()
        assert rig.parts.room.reserved == 0


async def test_nothing_inside(rig: Rig, glance: LyingGlance) -> None:
    """A stream of nothing makes no disk."""
    assert await refusal(rig, add(glance, COMPRESS["gzip"](b""), "compressed", "raw")) == "empty"


# What interrupts it.


async def test_whoever_goes_away(rig: Rig, glance: LyingGlance) -> None:
    """A disk that nobody waits for any more is not taken out to its end, nor left half."""
    image_id = add(glance, COMPRESS["gzip"](os.urandom(64) + bytes(100 * MIB)), "compressed", "raw")
    asked = asyncio.create_task(rig.bases.ensure(image_id, NOBODY))
    await until(lambda: asked.done() or rig.layout.unpacked(image_id).exists())
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    await until(lambda: not rig.bases.coming())
    assert not rig.layout.unpacked(image_id).exists()
    assert rig.parts.room.reserved == 0


async def test_left_by_a_crash(rig: Rig, glance: LyingGlance) -> None:
    """What an agent left that was killed goes at the next start, or gives way to the next try."""
    forgotten = rig.layout.unpacked(ImageId(str(uuid.uuid4())))
    forgotten.write_bytes(b"half of a disk")
    await rig.reconcile.run(rig.clock.time())
    assert not forgotten.exists()
    image_id = add(glance, COMPRESS["gzip"](CONTENT), "compressed", "raw")
    rig.layout.unpacked(image_id).write_bytes(b"half of a disk")
    assert await content(rig, image_id) == CONTENT


async def test_a_link_in_the_place_of_the_disk(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """Nothing is written through a link that somebody has planted."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    image_id = add(glance, COMPRESS["gzip"](CONTENT), "compressed", "raw")
    rig.layout.unpacked(image_id).symlink_to(victim)
    assert await content(rig, image_id) == CONTENT
    assert victim.read_bytes() == b"precious"
