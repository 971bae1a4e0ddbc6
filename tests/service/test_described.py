"""What a request can end in is what the description of its route says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheagent.api.openapi import problems_of
from cacheagent.api.routes import ROUTES
from cacheagent.errors import DiskFullError, HostUnavailableError, ProblemError
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec
from cacheagent.service.verify import Verify
from tests.fakes.values import disk_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cacheagent.model import ImageId
    from tests.fakes.lying_glance import LyingGlance
    from tests.service.rig import Rig

NOBODY = Caller()
KEY = disk_key(1)
BLANK = DiskSpec(image_id=None, size=1 << 20, format=DiskFormat.RAW, mode=DiskMode.FULL)
DESCRIBED = {route.operation: problems_of(route) for route in ROUTES}


def requests(rig: Rig, image_id: ImageId) -> dict[str, Callable[[], Awaitable[object]]]:
    """Give what each route does that changes something and fetches nothing."""
    verify = Verify(rig.parts, rig.bases, rig.repair, access=rig.access)
    return {
        "disk_delete": lambda: rig.disks.delete(KEY),
        "instance_delete": lambda: rig.disks.delete_instance(KEY.instance_id),
        "image_pin": lambda: rig.images.pin(image_id, NOBODY),
        "image_unpin": lambda: rig.images.unpin(image_id, NOBODY),
        "image_verify": lambda: verify.verify(image_id, NOBODY),
        "image_evict": lambda: rig.images.evict(image_id, NOBODY),
    }


def described(error: ProblemError, operation: str) -> bool:
    """Tell whether the description has the answer that the error becomes."""
    return error.word in {each.word for each in DESCRIBED[operation]}


@pytest.mark.parametrize("operation", ["disk_delete", "instance_delete"])
async def test_a_link_in_place_of_an_instance(
    rig: Rig, glance: LyingGlance, tmp_path: Path, operation: str
) -> None:
    """Whose folder somebody has exchanged cannot be removed now, as is described."""
    await rig.disks.create(KEY, BLANK, NOBODY)
    folder = rig.layout.instance(KEY.instance_id)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(HostUnavailableError) as refused:
        await requests(rig, glance.add(b"data"))[operation]()
    assert described(refused.value, operation)


@pytest.mark.usefixtures("qemu_img")
@pytest.mark.parametrize(
    ("operation", "written"),
    [
        ("disk_delete", "remove_disk"),
        ("instance_delete", "remove_disk"),
        ("image_pin", "pin"),
        ("image_unpin", "unpin"),
        ("image_verify", "lease"),
        ("image_evict", "forget_image"),
    ],
)
async def test_a_catalog_without_room(
    rig: Rig, glance: LyingGlance, monkeypatch: pytest.MonkeyPatch, operation: str, written: str
) -> None:
    """A file system on which nothing more can be written is told, as is described."""
    image_id = glance.add(b"data")
    if written != "forget_image":
        await rig.bases.ensure(image_id, NOBODY)
    else:
        await rig.bases.announce(image_id, NOBODY)
    await rig.disks.create(KEY, BLANK, NOBODY)

    async def full(*_: object, **__: object) -> None:
        raise DiskFullError(required_bytes=4096, available_bytes=0)

    monkeypatch.setattr(rig.parts.catalog, written, full)
    with pytest.raises(ProblemError) as refused:
        await requests(rig, image_id)[operation]()
    assert described(refused.value, operation)
