"""The command lines of qemu-img, and what the real one does with them."""

from __future__ import annotations

import asyncio
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends import qemuimg
from cacheagent.backends.qemuimg import ProgressReader, QemuImg, QemuImgInfo, QemuImgSettings
from cacheagent.errors import ProgramMissingError, QemuImgError
from cacheagent.model import DiskFormat, SandboxKind
from cacheagent.process import Limits, run_limited
from tests.fakes import images
from tests.fakes.sandboxes import BUBBLEWRAP, RLIMITS
from tests.needs import require_bubblewrap, require_programs
from tests.test_process import wait_for_ends

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
CONTENT = os.urandom(MIB) + bytes(3 * MIB) + os.urandom(MIB)
NEW = "-n --target-is-zero --target-image-opts"
NATIVE = "driver=raw,file.driver=file,file.aio=native,file.filename="
FORMATS = [
    ("raw", "raw", ""),
    ("qcow2", "qcow2", "compat=0.10"),
    ("qcow2", "qcow2", "compat=1.1,cluster_size=4k"),
    ("vmdk", "vmdk", "subformat=monolithicSparse"),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vdi", "vdi", ""),
    ("vpc", "vpc", "force_size=on"),
    ("vpc", "vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "vhdx", ""),
]


def settings(binary: str = "qemu-img") -> QemuImgSettings:
    """Give the settings that an operator gets by default."""
    return QemuImgSettings(
        binary=binary, cpu_time_limit=60, memory_limit=2 << 30, convert_threads=2
    )


@pytest.fixture(params=[RLIMITS, BUBBLEWRAP], ids=lambda sandbox: str(sandbox.kind))
def qemu(request: pytest.FixtureRequest) -> QemuImg:
    """Give the real qemu-img, with limits alone and in bubblewrap."""
    require_programs("qemu-img")
    if request.param.kind is SandboxKind.BUBBLEWRAP:
        require_bubblewrap()
    return QemuImg(settings(), request.param)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], QemuImg]:
    """Give a maker of programs that are called in place of qemu-img."""

    def make(script: str) -> QemuImg:
        program = tmp_path / "stand-in"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return QemuImg(settings(str(program)), RLIMITS)

    return make


def ignore(_fraction: float) -> None:
    """Take no interest in the progress."""


def test_every_command_line_states_the_format() -> None:
    """No file is ever opened as what its own header claims to be."""
    disk, base = Path("/d/root.qcow2"), Path("/b/base.raw")
    qcow2, raw = DiskFormat.QCOW2, DiskFormat.RAW
    commands = [
        qemuimg.info_arguments(disk, "qcow2"),
        qemuimg.check_arguments(disk, "vmdk"),
        *(
            qemuimg.convert_arguments(base, "vpc", disk, raw, coroutines=3, way=way)
            for way in qemuimg.ways(raw)
        ),
        qemuimg.convert_arguments(
            base, "raw", disk, qcow2, coroutines=16, way=qemuimg.ways(qcow2)[0]
        ),
        qemuimg.create_overlay_arguments(disk, base=base, base_format=raw, size=9, options="a=b"),
        qemuimg.create_overlay_arguments(disk, base=base, base_format=qcow2, size=9, options=""),
        qemuimg.create_arguments(disk, qcow2, size=9, options="a=b"),
        qemuimg.create_arguments(base, raw, size=9, options=""),
        qemuimg.resize_arguments(disk, qcow2, 9),
    ]
    assert [" ".join(words) for words in commands] == [
        "info --force-share --output=json -f qcow2 /d/root.qcow2",
        "check --output=json -f vmdk /d/root.qcow2",
        f"convert -p -W -m 3 -t none -T none -f vpc {NEW} /b/base.raw {NATIVE}/d/root.qcow2",
        "convert -p -W -m 3 -t none -T none -f vpc -O raw /b/base.raw /d/root.qcow2",
        "convert -p -W -m 3 -t writeback -T writeback -f vpc -O raw /b/base.raw /d/root.qcow2",
        "convert -p -W -m 16 -t none -T none -f raw -O qcow2 /b/base.raw /d/root.qcow2",
        "create -q -f qcow2 -b /b/base.raw -F raw -o a=b /d/root.qcow2 9",
        "create -q -f qcow2 -b /b/base.raw -F qcow2 /d/root.qcow2 9",
        "create -q -f qcow2 -o a=b /d/root.qcow2 9",
        "create -q -f raw /b/base.raw 9",
        "resize -q -f qcow2 /d/root.qcow2 9",
    ]


@pytest.mark.parametrize("name", ["json:{}", "nbd:unix:/x", "root.qcow2", "-help"])
def test_only_an_absolute_path_is_a_file(name: str) -> None:
    """What QEMU could take for a protocol or an option never gets onto a command line."""
    with pytest.raises(ValueError, match="absolute"):
        qemuimg.info_arguments(Path(name), "raw")
    with pytest.raises(ValueError, match="absolute"):
        qemuimg.create_overlay_arguments(
            Path("/d"), base=Path(name), base_format=DiskFormat.RAW, size=1, options=""
        )


def test_progress_is_found_wherever_the_output_is_cut() -> None:
    """Each percentage is reported once and in order, whatever the pieces were."""
    heard: list[float] = []
    reader = ProgressReader(heard.append)
    output = b"    (0.00/100%)\r    (12.50/100%)\r    (12.50/100%)\r    (100.00/100%)\r\n"
    for position in range(len(output)):
        reader.feed(output[position : position + 1])
    assert heard == [0.0, 0.125, 1.0]
    reader.feed(b"noise without an end" * 100)
    assert heard == [0.0, 0.125, 1.0]


def test_all_that_info_tells_is_read() -> None:
    """References, encryption and damage come through as qemu-img says them."""
    output = b"""{"virtual-size": 9, "actual-size": 5, "encrypted": true,
        "backing-filename": "b", "backing-filename-format": "raw",
        "format-specific": {"type": "qcow2", "data": {"corrupt": true, "data-file": "d"}}}"""
    assert qemuimg.parse_info(output) == QemuImgInfo(
        virtual_size=9,
        actual_size=5,
        backing_file="b",
        backing_format="raw",
        data_file="d",
        encrypted=True,
        corrupt=True,
    )


@pytest.mark.parametrize("output", [b"", b"[]", b"{}", b'{"virtual-size": null}', b"\xff"])
def test_an_answer_of_info_that_is_none_is_an_error(output: bytes) -> None:
    """An output that is not what it was is a failure of qemu-img, not of the daemon."""
    with pytest.raises(QemuImgError, match="cannot be read"):
        qemuimg.parse_info(output)


@pytest.mark.parametrize(("image_format", "made_as", "options"), FORMATS)
async def test_every_source_format_becomes_the_same_raw_disk(
    qemu: QemuImg, tmp_path: Path, image_format: str, made_as: str, options: str
) -> None:
    """Whatever the image came as, the base holds its disk byte for byte, with holes."""
    source = images.made_by_qemu(tmp_path / "source", made_as, options, CONTENT)
    await qemu.check(source, image_format)
    info = await qemu.info(source, image_format)
    assert info.virtual_size == len(CONTENT)
    target, heard = tmp_path / "target", list[float]()
    await qemu.convert(
        source,
        image_format,
        target,
        DiskFormat.RAW,
        max_bytes=info.virtual_size,
        on_progress=heard.append,
    )
    assert target.read_bytes() == CONTENT
    assert target.stat().st_blocks * 512 < len(CONTENT)
    assert heard[-1] == 1.0


async def test_a_raw_disk_becomes_a_qcow2(qemu: QemuImg, tmp_path: Path) -> None:
    """A full qcow2 fits into the file size that is allowed for its disk."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(4 * MIB))
    target = tmp_path / "target"
    await qemu.convert(
        source, "raw", target, DiskFormat.QCOW2, max_bytes=4 * MIB, on_progress=ignore
    )
    await qemu.check(target, "qcow2")
    images.qemu_img("compare", "-f", "raw", "-F", "qcow2", source, target)


async def test_a_conversion_cannot_write_more_than_is_allowed(
    qemu: QemuImg, tmp_path: Path
) -> None:
    """A disk larger than the bound fails, and the file has not outgrown it."""
    source = images.made_by_qemu(tmp_path / "source", "qcow2", "", CONTENT)
    target = tmp_path / "target"
    with pytest.raises(QemuImgError) as caught:
        await qemu.convert(
            source, "qcow2", target, DiskFormat.RAW, max_bytes=2 * MIB, on_progress=ignore
        )
    assert not caught.value.no_space
    assert target.stat().st_size <= 2 * MIB + (64 << 10)


async def test_an_overlay_has_its_base_and_its_size(qemu: QemuImg, tmp_path: Path) -> None:
    """The overlay names base and format, grows beyond it, and is clean."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(CONTENT)
    await qemu.create_overlay(
        overlay, base=base, base_format=DiskFormat.RAW, size=64 * MIB, options="cluster_size=128k"
    )
    info = await qemu.info(overlay, "qcow2")
    assert (info.backing_file, info.backing_format) == (str(base), "raw")
    assert info.virtual_size == 64 * MIB
    plain = await run_limited(["qemu-img", "check", "-q", str(overlay)], limits=Limits())
    assert plain.returncode == 0


@pytest.mark.parametrize("disk_format", list(DiskFormat))
async def test_a_blank_disk_is_made_and_grows(
    qemu: QemuImg, tmp_path: Path, disk_format: DiskFormat
) -> None:
    """A disk has the size asked for, and later a larger one, but never a smaller."""
    disk = tmp_path / "disk"
    await qemu.create(disk, disk_format, size=8 * MIB, options="")
    await qemu.resize(disk, disk_format, 16 * MIB)
    with pytest.raises(QemuImgError, match="shrink"):
        await qemu.resize(disk, disk_format, 4 * MIB)
    info = await qemu.info(disk, disk_format)
    assert info.virtual_size == 16 * MIB
    assert info.backing_file is None


async def test_a_wrong_format_is_an_error(qemu: QemuImg, tmp_path: Path) -> None:
    """A file is opened as what was said, and fails where it is not that."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    with pytest.raises(QemuImgError, match=r"qemu-img info: .*not in qcow2 format"):
        await qemu.info(disk, "qcow2")
    with pytest.raises(QemuImgError, match="qemu-img check: "):
        await qemu.check(disk, "qcow2")


@pytest.mark.parametrize(
    ("image_format", "options", "compressed"),
    [("qcow2", ["-c"], True), ("qcow2", [], False), ("raw", [], False)],
)
async def test_a_check_tells_of_compressed_clusters(
    qemu: QemuImg, tmp_path: Path, image_format: str, options: list[str], *, compressed: bool
) -> None:
    """It is known what a conversion has to expect, before it begins."""
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    raw.write_bytes(b"text" * MIB)
    images.qemu_img("convert", *options, "-f", "raw", "-O", image_format, raw, disk)
    assert await qemu.check(disk, image_format) is compressed


@pytest.mark.parametrize(("compressed", "coroutines"), [(False, "2"), (True, "16")])
async def test_compressed_clusters_are_read_by_more_coroutines(
    stand_in: Callable[[str], QemuImg], tmp_path: Path, *, compressed: bool, coroutines: str
) -> None:
    """One cluster at a time would leave the cores idle."""
    log = tmp_path / "log"
    qemu = stand_in(f'[ "$1" = convert ] || exit 0; echo "$5" >> {log}')
    await qemu.convert(
        Path("/a"),
        "qcow2",
        Path("/b"),
        DiskFormat.RAW,
        max_bytes=MIB,
        on_progress=ignore,
        compressed=compressed,
    )
    assert log.read_text().split() == [coroutines]


async def test_a_truncated_qcow2_is_found_by_the_check(qemu: QemuImg, tmp_path: Path) -> None:
    """Data that lie beyond the end of the file are a finding, though the header is sound."""
    source = images.made_by_qemu(tmp_path / "source", "qcow2", "", CONTENT)
    with source.open("r+b") as file:
        file.truncate(MIB)
    with pytest.raises(QemuImgError, match="qemu-img check"):
        await qemu.check(source, "qcow2")


async def test_leaked_clusters_are_no_finding(qemu: QemuImg, tmp_path: Path) -> None:
    """Space that nothing refers to is lost, but no danger."""
    disk = tmp_path / "disk"
    images.qemu_img("create", "-q", "-f", "qcow2", disk, MIB)
    with disk.open("r+b") as file:
        # The refcount of the fifth cluster, in the only block of refcounts.
        file.seek(2 * images.CLUSTER + 2 * 4)
        file.write(b"\x00\x01")
        file.truncate(5 * images.CLUSTER)
    plain = await run_limited(["qemu-img", "check", "-q", str(disk)], limits=Limits())
    assert plain.returncode == 3
    await qemu.check(disk, "qcow2")


@pytest.mark.parametrize(
    ("status", "output", "findings"),
    [
        (0, '{"check-errors": 0}', None),
        (3, '{"check-errors": 0, "leaks": 4}', None),
        (63, "", None),
        (2, '{"check-errors": 0, "corruptions": 2}', "2 corruptions, 0 errors"),
        (2, '{"check-errors": 1}', "0 corruptions, 1 errors"),
        (2, "nonsense", "cannot be read"),
        (1, "", "ended with status 1"),
    ],
)
async def test_each_status_of_a_check_has_a_meaning(
    stand_in: Callable[[str], QemuImg], status: int, output: str, findings: str | None
) -> None:
    """Sound and leaking images pass, and so do formats that have no check."""
    qemu = stand_in(f"echo '{output}'; exit {status}")
    if findings is None:
        await qemu.check(Path("/disk"), "qcow2")
        return
    with pytest.raises(QemuImgError, match=findings):
        await qemu.check(Path("/disk"), "qcow2")


@pytest.mark.parametrize(
    ("complaints", "tried"),
    [
        ([], ["native"]),
        (["Unable to use native AIO: failed to create linux AIO context"], ["native", "none"]),
        (
            ["aio=native was specified, but is not supported in this build.", "Invalid argument"],
            ["native", "none", "writeback"],
        ),
        (["filesystem does not support O_DIRECT"] * 2, ["native", "none", "writeback"]),
        (["Could not find working O_DIRECT alignment"] * 2, ["native", "none", "writeback"]),
        (["qemu-img: error while writing at byte 0: Invalid argument"], ["native", "none"]),
        (["qemu-img: error while reading at byte 0: Invalid argument"], ["native", "writeback"]),
    ],
)
async def test_what_a_host_lacks_costs_another_try_and_not_the_conversion(
    stand_in: Callable[[str], QemuImg], tmp_path: Path, complaints: list[str], tried: list[str]
) -> None:
    """Without native calls threads write, and without direct I/O through the page cache."""
    log, left = tmp_path / "log", tmp_path / "left"
    left.write_text("".join(f"{line}\n" for line in complaints))
    qemu = stand_in(
        '[ "$1" = convert ] || exit 0\n'
        f'case "$*" in *aio=native*) echo native;; *) echo "$7";; esac >> {log}\n'
        f"line=$(head -n 1 {left}); sed -i 1d {left}\n"
        '[ -z "$line" ] || { echo "$line" >&2; exit 1; }'
    )
    await qemu.convert(
        Path("/a"), "qcow2", Path("/b"), DiskFormat.RAW, max_bytes=MIB, on_progress=ignore
    )
    assert log.read_text().split() == tried


async def test_a_conversion_knows_any_name_and_what_was_there_before_is_gone(
    qemu: QemuImg, tmp_path: Path
) -> None:
    """A comma in the path is no option of QEMU, and the holes of a disk do not show old bytes."""
    source = images.made_by_qemu(tmp_path / "source", "qcow2", "", CONTENT)
    target = tmp_path / "a,size=1,b"
    target.write_bytes(os.urandom(len(CONTENT)))
    await qemu.convert(
        source, "qcow2", target, DiskFormat.RAW, max_bytes=len(CONTENT), on_progress=ignore
    )
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "complaint",
    [
        "qemu-img: error while writing at byte 0: No space left on device",
        "qemu-img: Could not open '/AIO/a': Image is corrupt",
        "qemu-img: /a: file may not support O_DIRECT: No space left on device",
        "qemu-img: Could not open '/a': Could not open '/a': Invalid argument",
    ],
)
async def test_what_no_other_way_would_mend_is_told_at_once(
    stand_in: Callable[[str], QemuImg], tmp_path: Path, complaint: str
) -> None:
    """A full disk and a broken image are not written three times, whatever files are called."""
    log = tmp_path / "log"
    qemu = stand_in(
        f'[ "$1" = convert ] || exit 0\necho x >> {log}\necho "{complaint}" >&2; exit 1'
    )
    with pytest.raises(QemuImgError):
        await qemu.convert(
            Path("/AIO/a"), "qcow2", Path("/b"), DiskFormat.RAW, max_bytes=MIB, on_progress=ignore
        )
    assert log.read_text().split() == ["x"]


async def test_a_broken_image_that_reads_as_a_wrong_way_is_told_out_of_the_page_cache(
    stand_in: Callable[[str], QemuImg], tmp_path: Path
) -> None:
    """A compressed grain of a VMDK that is none fails as direct I/O would: once more, and told."""
    require_programs("qemu-img")
    source, log = tmp_path / "source", tmp_path / "log"
    images.made_by_qemu(source, "vmdk", "subformat=streamOptimized", CONTENT)
    with source.open("r+b") as file:
        # The header names the sector of the first grain; a length stands behind its place.
        file.seek(64)
        (first,) = struct.unpack("<Q", file.read(8))
        file.seek(first * 512 + 8)
        file.write(b"\xff" * 4)
    told = tmp_path / "told"
    qemu = stand_in(
        f'qemu-img "$@" 2> {told}; status=$?; cat {told} >&2\n'
        f'! grep -q reading {told} || echo "$7" >> {log}; exit $status'
    )
    with pytest.raises(QemuImgError, match="error while reading at byte 0"):
        await qemu.convert(
            source,
            "vmdk",
            tmp_path / "target",
            DiskFormat.RAW,
            max_bytes=len(CONTENT),
            on_progress=ignore,
        )
    # Where the file system has no direct I/O, it is not read that way at all.
    assert log.read_text().split() in (["none", "writeback"], ["writeback"])


async def test_a_full_file_system_is_told_from_other_failures(
    stand_in: Callable[[str], QemuImg],
) -> None:
    """The caller can free space and try again, since the error says what was lacking."""
    qemu = stand_in(
        '[ "$1" = convert ] || exit 0\n'
        'echo "qemu-img: error while writing: No space left on device" >&2; exit 1'
    )
    with pytest.raises(QemuImgError, match="qemu-img convert: error while writing") as caught:
        await qemu.convert(
            Path("/a"), "raw", Path("/b"), DiskFormat.RAW, max_bytes=MIB, on_progress=ignore
        )
    assert caught.value.no_space


@pytest.mark.parametrize(
    ("complaints", "told"),
    [
        (
            (
                "qemu-img: Error when deleting file /d: Read-only file system\n"
                "qemu-img: /d: Cluster size must be a power of two"
            ),
            "/d: Cluster size must be a power of two",
        ),
        (
            "qemu-img: Error when deleting file /d: Read-only file system",
            "Error when deleting file /d: Read-only file system",
        ),
    ],
)
async def test_reason_is_told_and_not_what_followed_from_it(
    stand_in: Callable[[str], QemuImg], complaints: str, told: str
) -> None:
    """Nobody is sent to look for a read-only file system where an option was wrong."""
    qemu = stand_in(f'echo "{complaints}" >&2; exit 1')
    with pytest.raises(QemuImgError) as caught:
        await qemu.create(Path("/d"), DiskFormat.QCOW2, size=MIB, options="cluster_size=3k")
    assert str(caught.value) == f"qemu-img create: {told}"


async def test_wrong_option_is_told_alike_in_every_sandbox(qemu: QemuImg, tmp_path: Path) -> None:
    """What the real qemu-img says of an option begins with the option."""
    path = tmp_path / "disk"
    with pytest.raises(QemuImgError) as caught:
        await qemu.create(path, DiskFormat.QCOW2, size=MIB, options="cluster_size=3k")
    assert str(caught.value).startswith(f"qemu-img create: {path}: Cluster size must be")


async def test_looking_at_an_image_can_write_to_no_file(
    stand_in: Callable[[str], QemuImg], tmp_path: Path
) -> None:
    """Neither info nor check can write: they run with a file size of zero."""
    log = tmp_path / "log"
    log.touch()
    for look in (QemuImg.info, QemuImg.check):
        qemu = stand_in(f"echo x >> {log}")
        with pytest.raises(QemuImgError):
            await look(qemu, Path("/disk"), "qcow2")
    assert log.read_text() == ""


async def test_a_conversion_has_cpu_time_that_suits_its_size(
    stand_in: Callable[[str], QemuImg], tmp_path: Path
) -> None:
    """The limit of the short commands does not cut a long conversion off."""
    log = tmp_path / "log"
    qemu = stand_in(f"cat /proc/self/limits > {log}")
    await qemu.convert(
        Path("/a"), "raw", Path("/b"), DiskFormat.RAW, max_bytes=800 * MIB, on_progress=ignore
    )
    limits = [line.split() for line in log.read_text().splitlines()]
    assert ["Max", "cpu", "time", "160", "165", "seconds"] in limits
    assert ["Max", "address", "space", str(2 << 30), str(2 << 30), "bytes"] in limits


async def test_a_missing_qemu_img_is_named() -> None:
    """An operator reads what to install or where to point the configuration."""
    with pytest.raises(ProgramMissingError, match="/nowhere/qemu-img"):
        await QemuImg(settings("/nowhere/qemu-img"), RLIMITS).info(Path("/disk"), "raw")


async def test_cancelling_a_conversion_kills_the_real_qemu_img(
    stand_in: Callable[[str], QemuImg], tmp_path: Path
) -> None:
    """A request that goes away takes its qemu-img with it."""
    require_programs("qemu-img")
    source, pid = tmp_path / "source", tmp_path / "pid"
    source.write_bytes(os.urandom(16 * MIB))
    # At 64 KiB a second it would be busy for minutes.
    qemu = stand_in(
        '[ "$1" = convert ] || exec qemu-img "$@"\n'
        f'echo $$ > {pid}; shift; exec qemu-img convert -r 64k "$@"'
    )
    begun = asyncio.Event()
    run = asyncio.ensure_future(
        qemu.convert(
            source,
            "raw",
            tmp_path / "target",
            DiskFormat.RAW,
            max_bytes=16 * MIB,
            on_progress=lambda _fraction: begun.set(),
        )
    )
    await begun.wait()
    pidfd = os.pidfd_open(int(pid.read_text()))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await asyncio.to_thread(wait_for_ends, [pidfd])


async def test_version_is_that_of_qemu(qemu: QemuImg) -> None:
    """The metrics can say which QEMU makes the disks."""
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", await qemu.version())
