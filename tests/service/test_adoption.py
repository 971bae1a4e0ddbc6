"""Bases whose manifest is gone, with the catalog: their digest is all that proves them."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import CacheResult, Caller, DiskFormat, DiskSpec
from tests.fakes.images import made_by_qemu
from tests.fakes.values import NOW, disk_key
from tests.service.rig import in_a_task, rig_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import Base, ImageId
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

pytestmark = pytest.mark.usefixtures("qemu_img")

MIB = 1 << 20
NOBODY = Caller()
RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2


@pytest.fixture
async def keeping(tmp_path: Path, glance: LyingGlance) -> AsyncIterator[Rig]:
    """Wire an agent that keeps qcow2 images as they come."""
    async with in_a_task(rig_on(tmp_path, glance.url, images={"base_format": "keep"})) as rig:
        yield rig


def content(tmp_path: Path, image_format: str) -> bytes:
    """Make an image that no other test has."""
    data = os.urandom(MIB)
    if image_format == "raw":
        return data
    return made_by_qemu(tmp_path / "image", image_format, "", data).read_bytes()


async def lose(rig: Rig, base: Base) -> Path:
    """Lose the catalog's rows, and the manifest of the base; give its path."""
    rig.layout.manifest(base.base_id, base.format).unlink()
    await rig.parts.catalog.remove_base(base.base_id)
    return rig.layout.base(base.base_id, base.format)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_base_is_proved_by_its_digest(
    keeping: Rig, glance: LyingGlance, tmp_path: Path, image_format: str
) -> None:
    """An image that lies here as it came is a base again, and costs no second download."""
    image = glance.add(content(tmp_path, image_format), disk_format=image_format)
    base = (await keeping.bases.ensure(image, NOBODY)).base
    await lose(keeping, base)
    assert (await keeping.reconcile.run(NOW)).unproved_bases == ((base.base_id, base.format),)
    # Not by the start: to read it may take long.
    assert await keeping.parts.catalog.bases() == []
    await keeping.reconcile.check(NOW)
    (found,) = await keeping.parts.catalog.bases()
    for fact in ("format", "source_format", "size", "virtual_size", "allocated"):
        assert getattr(found, fact) == getattr(base, fact)
    assert (await keeping.bases.ensure(image, NOBODY)).result is CacheResult.HIT
    assert len(glance.calls("data")) == 1
    assert not any((await keeping.reconcile.check(NOW)).counts().values())


async def test_proved_base_has_a_manifest_again(
    keeping: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """The next loss of the catalog finds it without reading it, and disks can be made."""
    image = glance.add(content(tmp_path, "raw"))
    base = (await keeping.bases.ensure(image, NOBODY)).base
    await lose(keeping, base)
    await keeping.reconcile.check(NOW)
    await keeping.parts.catalog.remove_base(base.base_id)
    assert len((await keeping.reconcile.run(NOW)).adopt_bases) == 1
    await keeping.disks.create(disk_key(1), DiskSpec(image_id=image, size=None), NOBODY)
    assert len(glance.calls("data")) == 1


async def test_converted_base_cannot_be_proved(
    rig: Rig, glance: LyingGlance, tmp_path: Path
) -> None:
    """Its digest is that of the image, which it is no longer: it is reported and left alone."""
    image = glance.add(content(tmp_path, "qcow2"), disk_format="qcow2")
    base = (await rig.bases.ensure(image, NOBODY)).base
    path = await lose(rig, base)
    for _ in range(2):
        assert (await rig.reconcile.check(NOW)).strays == (path,)
    assert await rig.parts.catalog.bases() == []
    assert path.exists()
    assert rig.metric("unknown_files") == 1


async def test_file_that_is_no_base_is_read_once(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of which it is known that its name is wrong is read again when it has changed."""
    base = (await rig.bases.ensure(glance.add(b"data" * 512), NOBODY)).base
    path = await lose(rig, base)
    path.chmod(0o600)
    path.write_bytes(b"other")
    reads = []
    reread = rig.parts.store.reread

    def counted(*arguments: object) -> object:
        reads.append(path)
        return reread(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.parts.store, "reread", counted)
    for _ in range(2):
        await rig.reconcile.check(NOW)
    assert len(reads) == 1
    path.write_bytes(b"data" * 512)
    await rig.reconcile.check(NOW)
    assert len(reads) == 2
    assert len(await rig.parts.catalog.bases()) == 1


@pytest.mark.parametrize("disk_format", [RAW, QCOW2])
async def test_digest_alone_makes_no_base(
    rig: Rig, tmp_path: Path, disk_format: DiskFormat
) -> None:
    """A qcow2 file that names another file is none under any name, though its digest is right."""
    data = made_by_qemu(tmp_path / "image", "qcow2", "", b"x" * MIB).read_bytes()
    evil = bytearray(data)
    # The offset and the length of the backing file's name (QEMU, docs/interop/qcow2.txt).
    evil[8:20] = (512).to_bytes(8, "big") + (9).to_bytes(4, "big")
    evil[512:521] = b"/dev/zero"
    name = f"sha256-{hashlib.sha256(evil).hexdigest()}.{disk_format}"
    path = rig.layout.bases / name
    path.write_bytes(evil)
    assert (await rig.reconcile.check(NOW)).strays == (path,)
    assert await rig.parts.catalog.bases() == []


async def test_damaged_tables_make_no_base(rig: Rig, tmp_path: Path) -> None:
    """A qcow2 file that qemu-img finds damaged is none, though its digest and header are right."""
    data = made_by_qemu(tmp_path / "image", "qcow2", "", b"x" * MIB).read_bytes()
    evil = bytearray(data)
    # Its first table leads to itself (QEMU, docs/interop/qcow2.txt).
    table = int.from_bytes(data[40:48], "big")
    evil[table : table + 8] = (table | 1 << 63).to_bytes(8, "big")
    path = rig.layout.bases / f"sha256-{hashlib.sha256(evil).hexdigest()}.qcow2"
    path.write_bytes(evil)
    assert (await rig.reconcile.check(NOW)).strays == (path,)
    assert await rig.parts.catalog.bases() == []


async def test_what_came_meanwhile_counts(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that fetches the image while the file is read is not overwritten."""
    image: ImageId = glance.add(b"data" * 512)
    base = (await rig.bases.ensure(image, NOBODY)).base
    await lose(rig, base)
    allocated = rig.parts.store.allocated

    async def slow(path: Path) -> int:
        await rig.bases.ensure(image, NOBODY)
        return await allocated(path)

    monkeypatch.setattr(rig.parts.store, "allocated", slow)
    await rig.reconcile.check(NOW)
    assert [cached.base_id for cached in await rig.parts.catalog.images()] == [base.base_id]
    assert len(glance.calls("data")) == 2
