"""Headers of qcow2 files, those of qemu-img and those that somebody bent."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheagent.backends.qcow2 import Qcow2Header, is_empty, read_header
from cacheagent.errors import NotQcow2Error
from tests.fakes.qcow2 import write_header
from tests.needs import require_programs

if TYPE_CHECKING:
    from pathlib import Path

COMPRESSION_TYPE, EXTENDED_L2 = 1 << 3, 1 << 4
"""Incompatible features, as QEMU's docs/interop/qcow2.txt numbers them."""


def _create(path: Path, *arguments: str) -> Path:
    require_programs("qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, path, "1G"], check=True)
    return path


def test_a_disk_of_qemu_img(tmp_path: Path) -> None:
    """What qemu-img writes is read as what it was told to write."""
    path = _create(tmp_path / "disk.qcow2", "-o", "cluster_size=128k")
    assert read_header(path) == Qcow2Header(
        version=3,
        virtual_size=1 << 30,
        cluster_bits=17,
        backing_file=None,
        incompatible_features=0,
    )


def test_an_overlay_names_its_backing_file(tmp_path: Path) -> None:
    """The name is given as it stands there, in either version of the format."""
    base = _create(tmp_path / "bäse.qcow2")
    for compat in ("0.10", "1.1"):
        options = ("-o", f"compat={compat}", "-b", base.name, "-F", "qcow2")
        header = read_header(_create(tmp_path / f"overlay-{compat}.qcow2", *options))
        assert header.backing_file == "bäse.qcow2"
        assert header.version == (2 if compat == "0.10" else 3)


@pytest.mark.parametrize(
    ("options", "bits", "features"),
    [
        ("cluster_size=512", 9, 0),
        ("cluster_size=2M", 21, 0),
        ("cluster_size=16k,extended_l2=on", 14, EXTENDED_L2),
        ("cluster_size=128k,extended_l2=on", 17, EXTENDED_L2),
        ("compression_type=zstd", 16, COMPRESSION_TYPE),
    ],
)
def test_an_overlay_of_other_clusters_is_read(
    tmp_path: Path, options: str, bits: int, features: int
) -> None:
    """Clusters of any size, with and without subclusters, hide neither base nor size."""
    base = _create(tmp_path / "base.qcow2")
    made = ("-o", options, "-b", str(base), "-F", "qcow2")
    assert read_header(_create(tmp_path / "overlay.qcow2", *made)) == Qcow2Header(
        version=3,
        virtual_size=1 << 30,
        cluster_bits=bits,
        backing_file=str(base),
        incompatible_features=features,
    )


def test_an_external_data_file_is_told(tmp_path: Path) -> None:
    """A disk whose data lies elsewhere says so."""
    data = tmp_path / "data.raw"
    path = _create(tmp_path / "disk.qcow2", "-o", f"data_file={data}")
    assert read_header(path).external_data_file
    assert not read_header(_create(tmp_path / "plain.qcow2")).external_data_file


def test_a_name_is_what_qemu_would_read(tmp_path: Path) -> None:
    """A name ends at a NUL, and bytes that are no text survive."""
    path = write_header(tmp_path / "a", name=b"/bases/\xff\0hidden")
    assert read_header(path).backing_file == os.fsdecode(b"/bases/\xff")
    longest = write_header(tmp_path / "b", name=b"x" * 1023)
    assert read_header(longest).backing_file == "x" * 1023


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not qcow2"),
        (b"\0" * 4096, "is not qcow2"),
        (b"QED\0" + b"\0" * 4096, "is not qcow2"),
        (b"QFI\xfb\0\0\0\3", "ends within its qcow2 header"),
        (struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 1) + bytes(40), "ends within its qcow2"),
    ],
)
def test_garbage_is_no_qcow2(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file without a whole header is told from one that has it."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotQcow2Error, match=problem):
        read_header(path)


def test_a_bent_header_is_refused(tmp_path: Path) -> None:
    """Numbers that QEMU would not take are an error, and nothing is read beyond their bounds."""
    bent = [
        (write_header(tmp_path / "a", version=1), "of version 1"),
        (write_header(tmp_path / "b", version=4), "of version 4"),
        (write_header(tmp_path / "c", bits=8), r"clusters of 2\^8"),
        (write_header(tmp_path / "d", bits=64), r"clusters of 2\^64"),
        (write_header(tmp_path / "e", name=b"x" * 1024), "outside of its qcow2 header"),
        (write_header(tmp_path / "f", name=b"x", offset=1 << 63), "outside of its qcow2 header"),
        (
            write_header(tmp_path / "g", name=b"x", bits=9, offset=512),
            "outside of its qcow2 header",
        ),
        (write_header(tmp_path / "h", name=b"x", length=9), "ends within the name"),
    ]
    for path, problem in bent:
        with pytest.raises(NotQcow2Error, match=problem):
            read_header(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Folders, named pipes and sockets are no qcow2, and nobody waits for them."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket"):
            with pytest.raises(NotQcow2Error, match="is not a regular file"):
                read_header(path)


def test_links_are_followed_unless_told_otherwise(tmp_path: Path) -> None:
    """A link leads to the header of its target, or to an error where no link may be."""
    link = tmp_path / "link"
    link.symlink_to(write_header(tmp_path / "disk"))
    assert read_header(link).virtual_size == 5 << 20
    with pytest.raises(OSError, match="symbolic links"):
        read_header(link, follow_symlinks=False)


def test_a_file_that_cannot_be_read_is_another_error(tmp_path: Path) -> None:
    """That a file is gone says nothing of what it was."""
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "gone")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from([b"QFI\xfb", b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b""]),
    rest=st.binary(max_size=300),
)
def test_any_bytes_are_a_header_or_none(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    """Whatever stands in a file, the answer is a header within its bounds, or one error."""
    path = tmp_path / "file"
    path.write_bytes(magic + rest)
    try:
        header = read_header(path)
    except NotQcow2Error:
        return
    assert header.version in {2, 3}
    assert header.cluster_bits in range(9, 22)
    assert "\0" not in (header.backing_file or "")


def test_only_a_folder_with_nothing_in_it_is_empty(tmp_path: Path) -> None:
    """A folder that cannot be read is not known to be empty."""
    assert is_empty(tmp_path)
    assert not is_empty(tmp_path / "gone")
    (tmp_path / "file").touch()
    assert not is_empty(tmp_path)
