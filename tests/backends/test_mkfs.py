"""File systems made by the real tools, read back by their magics."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent import process
from cacheagent.backends.mkfs import make_filesystem, mkfs_arguments
from cacheagent.errors import InvalidRequestError, MkfsError, RetryLaterError
from cacheagent.model import FileSystem
from cacheagent.process import ENVIRONMENT
from tests.fakes.sandboxes import BUBBLEWRAP, RLIMITS
from tests.needs import require, require_bubblewrap

if TYPE_CHECKING:
    from cacheagent.sandbox import Sandbox

MIB = 1 << 20
# Offset and bytes of the magic and of the label: ext4(5), the XFS on-disk format, the FAT
# specification, mkswap(8).
LAYOUTS = {
    FileSystem.EXT4: ((1080, b"\x53\xef"), 1024 + 120),
    FileSystem.XFS: ((0, b"XFSB"), 108),
    FileSystem.VFAT: ((510, b"\x55\xaa"), None),
    FileSystem.SWAP: ((4086, b"SWAPSPACE2"), 1024 + 28),
}
TOOLS = {
    FileSystem.EXT4: "mke2fs",
    FileSystem.XFS: "mkfs.xfs",
    FileSystem.VFAT: "mkfs.vfat",
    FileSystem.SWAP: "mkswap",
}


def blank(path: Path, size: int) -> Path:
    """Make a file that is one hole of this size."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def stand_in(path: Path, tool: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script called in place of the tool."""
    program = path / tool
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(
        process, "ENVIRONMENT", {**ENVIRONMENT, "PATH": f"{path}:{ENVIRONMENT['PATH']}"}
    )


@pytest.mark.parametrize("filesystem", list(FileSystem))
@pytest.mark.parametrize("label", ["ephemeral0", None])
@pytest.mark.parametrize("sandbox", [RLIMITS, BUBBLEWRAP], ids=lambda sandbox: str(sandbox.kind))
async def test_each_file_system_is_made_with_its_label(
    tmp_path: Path, filesystem: FileSystem, label: str | None, sandbox: Sandbox
) -> None:
    """The file keeps its size and its holes, and bears the magic and the label."""
    tool = TOOLS[filesystem]
    require(shutil.which(tool, path=ENVIRONMENT["PATH"]), f"{tool} is not installed")
    if sandbox is BUBBLEWRAP:
        require_bubblewrap()
    disk = blank(tmp_path / "disk", 320 * MIB)
    await make_filesystem(disk, filesystem, label, sandbox=sandbox)
    (offset, magic), label_offset = LAYOUTS[filesystem]
    with disk.open("rb") as file:
        start = file.read(MIB)
    assert start[offset:].startswith(magic)
    if label and label_offset:
        assert start[label_offset:].startswith(label.encode() + b"\0")
    elif label:
        assert label.encode() in start
    assert disk.stat().st_size == 320 * MIB
    assert disk.stat().st_blocks * 512 < 100 * MIB


@pytest.mark.parametrize(
    ("filesystem", "longest"),
    [
        (FileSystem.EXT4, 16),
        (FileSystem.XFS, 12),
        (FileSystem.VFAT, 11),
        (FileSystem.SWAP, 15),
    ],
)
def test_a_label_fits_its_file_system(tmp_path: Path, filesystem: FileSystem, longest: int) -> None:
    """A label that would be cut, or taken for an option, is refused with its field."""
    assert "x" * longest in mkfs_arguments(tmp_path, filesystem, "x" * longest)
    for wrong in ("x" * (longest + 1), "", "-L", "_a", ".a", "a b", "a\n", "ä"):
        with pytest.raises(InvalidRequestError) as caught:
            mkfs_arguments(tmp_path, filesystem, wrong)
        assert caught.value.problems[0][0] == "label"


def test_a_file_is_an_absolute_path() -> None:
    """No name that could be an option gets onto a command line."""
    with pytest.raises(ValueError, match="absolute"):
        mkfs_arguments(Path("-V"), FileSystem.EXT4, None)


async def test_a_disk_that_is_too_small_is_the_requests_fault(tmp_path: Path) -> None:
    """The words of the tool say why this size does not do."""
    disk = blank(tmp_path / "disk", 4096)
    with pytest.raises(InvalidRequestError, match=r"filesystem: mkswap: .*at least"):
        await make_filesystem(disk, FileSystem.SWAP, None, sandbox=RLIMITS)


async def test_a_refusal_is_not_all_that_a_tool_can_do(tmp_path: Path) -> None:
    """One sentence says what is wrong with the disk, without the options of the tool."""
    disk = blank(tmp_path / "disk", 20 << 20)
    with pytest.raises(InvalidRequestError, match=r"filesystem: mkfs\.xfs: [^;]+$") as caught:
        await make_filesystem(disk, FileSystem.XFS, None, sandbox=RLIMITS)
    assert "Usage" not in str(caught.value)


async def test_a_tool_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked learns that this host cannot make it, and what is missing."""
    for tool in ("setpriv", "prlimit"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setattr(process, "ENVIRONMENT", {"PATH": str(tmp_path), "LC_ALL": "C"})
    disk = blank(tmp_path / "disk", MIB)
    with pytest.raises(InvalidRequestError, match=r"cannot make xfs: mkfs\.xfs is not installed"):
        await make_filesystem(disk, FileSystem.XFS, None, sandbox=RLIMITS)


async def test_a_full_disk_is_not_the_requests_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full file system is told apart from a bad request."""
    stand_in(tmp_path, "mkswap", "echo 'No space left on device' >&2; exit 1", monkeypatch)
    disk = blank(tmp_path / "disk", MIB)
    with pytest.raises(MkfsError) as caught:
        await make_filesystem(disk, FileSystem.SWAP, None, sandbox=RLIMITS)
    assert caught.value.no_space


async def test_a_tool_that_was_killed_may_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that the kernel killed is neither the request's fault nor for ever."""
    stand_in(tmp_path, "mkswap", "kill -KILL $$", monkeypatch)
    disk = blank(tmp_path / "disk", MIB)
    with pytest.raises(RetryLaterError, match="mkswap was killed by SIGKILL"):
        await make_filesystem(disk, FileSystem.SWAP, None, sandbox=RLIMITS)


async def test_a_tool_cannot_make_the_file_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's size is the bound of what the tool may write."""
    disk = blank(tmp_path / "disk", MIB)
    stand_in(tmp_path, "mkswap", f"exec truncate -s 2M {disk}", monkeypatch)
    with pytest.raises(MkfsError, match="limit on the size of a file"):
        await make_filesystem(disk, FileSystem.SWAP, None, sandbox=RLIMITS)
    assert disk.stat().st_size == MIB
