"""Disks made of an AMI come with kernel and ramdisk, or not at all."""

from __future__ import annotations

import asyncio
import os
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import (
    DiskConflictError,
    DiskNotFoundError,
    ImageForbiddenError,
    ImageNotFoundError,
    ImageUnacceptableError,
    InstanceNotFoundError,
)
from cacheagent.model import (
    Caller,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskName,
    DiskSpec,
    DiskState,
    InstanceId,
)
from tests.fakes import lying_glance
from tests.service.rig import gathered, state_of, until

if TYPE_CHECKING:
    from cacheagent.model import ImageId
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

NOBODY = Caller()
ROOT = os.urandom(1 << 20)
KERNEL = b"\x1f\x8b" + os.urandom(70_001)
RAMDISK = b"070701" + os.urandom(1_000)


@pytest.fixture
def key() -> DiskKey:
    """Give the name of a root disk of a new instance."""
    return DiskKey(instance_id=InstanceId(str(uuid.uuid4())), name=DiskName("root"))


def add(glance: LyingGlance, data: bytes, disk_format: str, **more: object) -> ImageId:
    """Store an image in the container of its name."""
    return glance.add(data, disk_format=disk_format, container_format=disk_format, **more)


def an_ami(glance: LyingGlance) -> ImageId:
    """Store the three images of an AMI."""
    kernel, ramdisk = add(glance, KERNEL, "aki"), add(glance, RAMDISK, "ari")
    return add(glance, ROOT, "ami", kernel_id=kernel, ramdisk_id=ramdisk)


def spec_of(image_id: ImageId) -> DiskSpec:
    """Ask for an overlay of an image."""
    return DiskSpec(image_id=image_id, size=None)


def names(rig: Rig, key: DiskKey) -> list[str]:
    """Name the files of an instance."""
    folder = rig.layout.instance(key.instance_id)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_three_files(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Kernel and ramdisk lie beside the disk, to the byte, and the answer tells where."""
    view, made = await rig.disks.create(key, spec_of(an_ami(glance)), NOBODY)
    assert (made, view.disk.state) == (True, DiskState.READY)
    found = {each.disk.key.name: each.path.read_bytes() for each in view.boot}
    assert found == {"kernel": KERNEL, "ramdisk": RAMDISK}
    assert [each.disk.virtual_size for each in view.boot] == [len(KERNEL), len(RAMDISK)]
    assert (await rig.disks.show(key)).boot == view.boot
    shown = {each.disk.key.name: each.boot for each in await rig.disks.instance(key.instance_id)}
    assert shown == {"root": view.boot, "kernel": (), "ramdisk": ()}


async def test_again(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """The same request finds all three, and makes again what was taken away since."""
    spec = spec_of(an_ami(glance))
    first, _ = await rig.disks.create(key, spec, NOBODY)
    assert await rig.disks.create(key, spec, NOBODY) == (first, False)
    await rig.disks.delete(replace(key, name=DiskName("kernel")))
    view, made = await rig.disks.create(key, spec, NOBODY)
    assert not made
    assert [each.path.read_bytes() for each in view.boot] == [KERNEL, RAMDISK]


async def test_again_without_the_image_service(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Once all three are here, asking again needs neither their bases nor Glance."""
    image_id = an_ami(glance)
    spec = spec_of(image_id)
    first, _ = await rig.disks.create(key, spec, NOBODY)
    for name in ("kernel_id", "ramdisk_id"):
        loaded = type(image_id)(str(glance.images[image_id].metadata[name]))
        await rig.images.evict(loaded, NOBODY)
    asked = len(glance.seen)
    assert await rig.disks.create(key, spec, NOBODY) == (first, False)
    assert len(glance.seen) == asked


async def test_begun_in_the_background(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Once the disk is ready, kernel and ramdisk are."""
    view, _ = await rig.disks.begin(key, spec_of(an_ami(glance)), NOBODY)
    assert view.disk.state is DiskState.PENDING
    async with asyncio.timeout(60):
        while await state_of(rig, key) is DiskState.PENDING:  # noqa: ASYNC110 -- it is asked for
            await asyncio.sleep(0)
    view = await rig.disks.show(key)
    assert [each.path.read_bytes() for each in view.boot] == [KERNEL, RAMDISK]


async def test_kernel_alone(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """An AMI may have a kernel and no ramdisk, or neither."""
    image_id = add(glance, ROOT, "ami", kernel_id=add(glance, KERNEL, "aki"), ramdisk_id="")
    view, _ = await rig.disks.create(key, spec_of(image_id), NOBODY)
    assert [each.disk.key.name for each in view.boot] == ["kernel"]
    other = replace(key, instance_id=InstanceId(str(uuid.uuid4())))
    bare = add(glance, os.urandom(1024), "ami", kernel_id="nokernel")
    assert (await rig.disks.create(other, spec_of(bare), NOBODY))[0].boot == ()


async def test_kernel_of_somebody_s_own(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """A disk called kernel beside one that is made of no AMI is shown by itself alone."""
    kernel = replace(key, name=DiskName("kernel"))
    blank = DiskSpec(image_id=None, size=4096, format=DiskFormat.RAW, mode=DiskMode.FULL)
    await rig.disks.create(kernel, blank, NOBODY)
    spec = spec_of(glance.add(ROOT))
    made, _ = await rig.disks.create(key, spec, NOBODY)
    assert (made.disk.base_id, made.boot) == ((await rig.parts.catalog.bases())[0].base_id, ())
    assert await rig.disks.create(key, spec, NOBODY) == (made, False)
    assert await rig.disks.show(key) == made
    assert made in await rig.disks.instance(key.instance_id)
    ((_, listed),) = await gathered(rig.disks.instances())
    assert made in listed


async def test_boot_files_are_shown_when_the_image_has_gone(
    rig: Rig, glance: LyingGlance, key: DiskKey
) -> None:
    """A full copy of an AMI is told with its kernel, though nothing of the AMI is here any more."""
    image_id = an_ami(glance)
    spec = DiskSpec(image_id=image_id, size=None, mode=DiskMode.FULL)
    made, _ = await rig.disks.create(key, spec, NOBODY)
    await rig.images.evict(image_id, NOBODY)
    shown = await rig.disks.show(key)
    assert (shown.base, shown.boot) == (None, made.boot)
    assert len(shown.boot) == 2
    assert shown in await rig.disks.instance(key.instance_id)


async def test_the_instance_goes_with_all_of_them(
    rig: Rig, glance: LyingGlance, key: DiskKey
) -> None:
    """Nothing is left of an instance that is removed."""
    await rig.disks.create(key, spec_of(an_ami(glance)), NOBODY)
    await rig.disks.delete_instance(key.instance_id)
    assert names(rig, key) == []
    with pytest.raises(InstanceNotFoundError):
        await rig.disks.instance(key.instance_id)


async def test_the_instance_goes_while_its_kernel_comes(
    rig: Rig, glance: LyingGlance, key: DiskKey
) -> None:
    """An instance that is removed in the middle leaves no kernel either."""
    gate = asyncio.Event()
    image_id = an_ami(glance)
    await rig.bases.ensure(image_id, NOBODY)
    glance.lie("data", lying_glance.held(gate))
    asked = asyncio.create_task(rig.disks.create(key, spec_of(image_id), NOBODY))
    await until(rig.bases.coming)
    await rig.disks.delete_instance(key.instance_id)
    gate.set()
    with pytest.raises(DiskConflictError, match="deleted"):
        await asked
    assert names(rig, key) == []
    assert await rig.parts.catalog.disks() == []


async def test_name_that_is_taken(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """A disk of another kind that is called kernel is a conflict, and stays."""
    kernel = replace(key, name=DiskName("kernel"))
    blank = DiskSpec(image_id=None, size=4096, format=DiskFormat.RAW, mode=DiskMode.FULL)
    await rig.disks.create(kernel, blank, NOBODY)
    with pytest.raises(DiskConflictError):
        await rig.disks.create(key, spec_of(an_ami(glance)), NOBODY)
    assert names(rig, key) == ["kernel.raw"]
    with pytest.raises(DiskNotFoundError):
        await rig.disks.show(key)


@pytest.mark.parametrize("name", ["kernel", "ramdisk"])
async def test_an_ami_called_kernel(rig: Rig, glance: LyingGlance, key: DiskKey, name: str) -> None:
    """A disk of one of the two names waits for no other, whatever it is made of."""
    other = replace(key, name=DiskName(name))
    async with asyncio.timeout(60):
        view, _ = await rig.disks.create(other, spec_of(an_ami(glance)), NOBODY)
    assert (view.boot, names(rig, key)) == ((), [f"{name}.qcow2"])


async def test_kernel_by_itself(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Whoever asks for the kernel as a disk of that name gets the same file."""
    image_id = an_ami(glance)
    kernel_id = rig_kernel(glance, image_id)
    spec = DiskSpec(image_id=kernel_id, size=None, format=DiskFormat.RAW, mode=DiskMode.FULL)
    kernel = replace(key, name=DiskName("kernel"))
    view, _ = await rig.disks.create(kernel, spec, NOBODY)
    assert view.path.read_bytes() == KERNEL
    await rig.disks.create(key, spec_of(image_id), NOBODY)
    elsewhere, _ = await rig.disks.create(replace(key, name=DiskName("other")), spec, NOBODY)
    assert elsewhere.path.stat().st_size % 512 == 0


def rig_kernel(glance: LyingGlance, image_id: ImageId) -> ImageId:
    """Give the kernel of an AMI."""
    found = glance.images[image_id].metadata["kernel_id"]
    return type(image_id)(str(found))


async def test_kernel_that_went_is_not_made_for_somebody_else(
    rig: Rig, glance: LyingGlance, key: DiskKey
) -> None:
    """Asking again with a token that is not good for the kernel shows and makes none."""
    image_id = an_ami(glance)
    tenant = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
    await rig.disks.create(key, spec_of(image_id), NOBODY)
    for gone in (False, True):
        if gone:
            await rig.disks.delete(replace(key, name=DiskName("kernel")))
        await rig.access.check(image_id, tenant)
        # That of the image is remembered; the next one asked about is the kernel.
        glance.lie("access", lying_glance.status(403))
        with pytest.raises(ImageForbiddenError):
            await rig.disks.create(key, spec_of(image_id), tenant)
    assert names(rig, key) == ["ramdisk.raw", "root.qcow2"]


async def test_kernel_that_is_none(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """An AMI cannot make another image its kernel, and leaves nothing of itself then."""
    image_id = add(glance, ROOT, "ami", kernel_id=glance.add(ROOT))
    with pytest.raises(ImageUnacceptableError, match="named as kernel") as refused:
        await rig.disks.create(key, spec_of(image_id), NOBODY)
    assert refused.value.reason == "boot-image"
    assert names(rig, key) == []


async def test_kernel_that_is_the_disk_itself(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Images that name each other, or themselves, are refused, and nobody waits for ever."""
    one = add(glance, ROOT, "ami")
    other = add(glance, os.urandom(1024), "ami", kernel_id=one)
    for named in (one, other):
        glance.images[one].metadata["kernel_id"] = named
        async with asyncio.timeout(60):
            with pytest.raises(ImageUnacceptableError, match="named as kernel"):
                await rig.disks.create(key, spec_of(one), NOBODY)
        assert names(rig, key) == []
        await rig.images.evict(one, NOBODY)


async def test_kernel_that_is_not_there(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """A kernel that Glance does not know keeps the disk from being made."""
    image_id = add(glance, ROOT, "ami", kernel_id=str(uuid.uuid4()))
    with pytest.raises(ImageNotFoundError):
        await rig.disks.create(key, spec_of(image_id), NOBODY)
    assert (names(rig, key), await rig.parts.catalog.disks()) == ([], [])


async def test_kernel_of_somebody_else(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """The caller's token has to be good for the kernel too, even where that is cached."""
    image_id = an_ami(glance)
    kernel_id = rig_kernel(glance, image_id)
    await rig.bases.ensure(kernel_id, NOBODY)
    await rig.bases.ensure(image_id, NOBODY)
    tenant = Caller(token="tenant")  # noqa: S106 -- nobody accepts it but the fake
    await rig.access.check(image_id, tenant)
    # That of the image is remembered; the next one asked about is the kernel.
    glance.lie("access", lying_glance.status(403))
    with pytest.raises(ImageForbiddenError):
        await rig.disks.create(key, spec_of(image_id), tenant)
    assert glance.calls("access")[-1].image_id == kernel_id
    assert names(rig, key) == []


async def test_a_restart_knows_them(rig: Rig, glance: LyingGlance, key: DiskKey) -> None:
    """Files that do not end with a sector are disks of ours all the same."""
    await rig.disks.create(key, spec_of(an_ami(glance)), NOBODY)
    await rig.reconcile.run(rig.clock.time())
    disks = {each.key.name: each.state for each in await rig.parts.catalog.disks()}
    assert disks == dict.fromkeys(("root", "kernel", "ramdisk"), DiskState.READY)
