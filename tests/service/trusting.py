"""What tests of bases have in common: how one is brought in, and made old, and spoiled."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from cacheagent.backends.store import Manifest
from cacheagent.model import Base, BaseId, BaseState, Caller, DiskFormat, GlanceImage, ImageId
from cacheagent.policy.sizing import whole_sectors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.rig import Rig

NOBODY = Caller()


async def bring(rig: Rig, wanted: ImageId) -> Base:
    """Ask for the base of an image."""
    return (await rig.bases.ensure(wanted, NOBODY)).base


async def row_of(rig: Rig, base: Base) -> Base:
    """Look at the row of a base."""
    row = await rig.parts.catalog.base(base.base_id)
    assert row is not None
    return row


async def make_old(rig: Rig, base: Base) -> None:
    """Let only older rules have let the base in, as after an upgrade."""
    old = replace(base, inspection_version=base.inspection_version - 1)
    await rig.parts.store.write_manifest(Manifest(base=old, images=()))
    await rig.parts.catalog.set_proved(old)


async def plant(rig: Rig, data: bytes, image_id: ImageId) -> Base:
    """Publish bytes as the raw base that older rules took them for."""
    digest, now = hashlib.sha512(data).hexdigest(), rig.parts.now()
    base = Base(
        base_id=BaseId(f"sha512-{digest}"),
        state=BaseState.READY,
        format=DiskFormat.RAW,
        source_format="raw",
        size=len(data),
        virtual_size=whole_sectors(len(data)),
        allocated=0,
        inspection_version=rig.parts.inspection_version - 1,
        fetched_at=now,
        last_used_at=now,
    )
    image = GlanceImage(
        image_id=image_id,
        name="planted",
        status="active",
        disk_format="raw",
        container_format="bare",
        size=len(data),
        os_hash_algo="sha512",
        os_hash_value=digest,
    )
    source = rig.layout.ingest / f"{image_id}.raw"
    await asyncio.to_thread(source.write_bytes, data)
    manifest = await rig.parts.store.publish(source, Manifest(base=base, images=(image,)))
    await rig.parts.catalog.publish(manifest.base, manifest.images, now)
    return manifest.base


def path_of(rig: Rig, base: Base) -> Path:
    """Give the file of a base."""
    return rig.layout.base(base.base_id, base.format)


def spoil(path: Path, data: bytes) -> None:
    """Overwrite the beginning of a base."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o440)


def qcow2_of(data: bytes, folder: Path) -> bytes:
    """Make a qcow2 image of these bytes."""
    raw, made = folder / "source.raw", folder / "source.qcow2"
    raw.write_bytes(data)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
    subprocess.run(command, check=True)
    return made.read_bytes()
