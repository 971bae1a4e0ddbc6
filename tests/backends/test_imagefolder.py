"""What the image service can count on where a folder changes under its hands."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.imagefolder import ImageFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

DATA = b"some data"


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[ImageFolder]:
    """Give a folder with the one file ``a.raw``."""
    (tmp_path / "a.raw").write_bytes(DATA)
    folder = ImageFolder(tmp_path)
    yield folder
    await folder.close()


@pytest.mark.parametrize("meanwhile", [os.unlink, os.utime], ids=["removed", "touched"])
async def test_a_file_that_changes_while_it_is_read_is_queued(
    folder: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Path], None],
) -> None:
    """Like an image whose upload has not ended: no size and no digest. Then it is read anew."""
    original = hashlib.sha512

    def disturb() -> object:
        monkeypatch.undo()
        meanwhile(tmp_path / "a.raw")
        return original()

    monkeypatch.setattr("hashlib.sha512", disturb)
    [before] = await folder.images()
    (tmp_path / "a.raw").write_bytes(DATA)
    [after] = await folder.images()
    image = before.image
    assert (image.status, image.size, image.digest, image.checksum) == ("queued", None, None, None)
    assert (after.image.status, after.image.size) == ("active", len(DATA))


@pytest.mark.parametrize("replace", [os.unlink, lambda path: path.write_bytes(b"other")])
async def test_only_the_file_that_was_described_is_opened(
    folder: ImageFolder, tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    """A file that was removed or replaced since cannot be had under the old description."""
    [image] = await folder.images()
    replace(tmp_path / "a.raw")
    assert await folder.open(image) is None


async def test_a_link_that_took_the_place_of_a_file_is_not_followed(
    folder: ImageFolder, tmp_path: Path
) -> None:
    """Not even to a file that looks the same."""
    [image] = await folder.images()
    (tmp_path / "a.raw").rename(tmp_path / "other")
    (tmp_path / "a.raw").symlink_to(tmp_path / "other")
    assert await folder.open(image) is None
