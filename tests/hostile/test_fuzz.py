"""Bytes and headers that nobody thought of: only what is declared is ever raised."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheagent.backends.inspect import Inspection
from cacheagent.backends.qcow2 import OverlayScanner, bases_named, file_names, read_header
from cacheagent.errors import ImageUnacceptableError, NotQcow2Error
from cacheagent.model import GlanceImage, ImageId
from cacheagent.policy import headers
from cacheagent.policy.admission import BaseFormat, ImageRules, SourceFormat, admit_content
from tests.fakes import images
from tests.fakes.values import base_id
from tests.hostile import disks, qcow2, vmdk
from tests.hostile.corpus import CORPUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.hostile.table import Row

GOOD: Final[Mapping[str, tuple[str, Callable[[], bytes]]]] = {
    "qcow2": ("qcow2", qcow2.sound),
    "qcow2 of version 2": ("qcow2", lambda: qcow2.sound(version=2)),
    "sparse vmdk": ("vmdk", vmdk.bent),
    "stream": ("vmdk", vmdk.footer),
    "vdi": ("vdi", disks.vdi),
    "dynamic vhd": ("vhd", disks.vhd),
    "fixed vhd": ("vhd", disks.fixed),
    "vhdx": ("vhdx", disks.vhdx),
    "iso": ("iso", lambda: images.iso(start=images.mbr())),
    "raw": ("raw", lambda: images.mbr() + bytes(4096)),
}
RULES = ImageRules(
    base_format=BaseFormat.RAW,
    allowed_formats=frozenset(),
    max_size=1 << 30,
    max_virtual_size=64 << 20,
)
MOST_MEMORY = 24 << 20
"""Bytes that an inspection may hold at worst: some pieces of 1 MiB for each inspector."""

MOST_KEPT = 256 << 10
"""Bytes that it may hold of an image whose beginning has shown what it is."""

FUZZ = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# Where the fields of headers and the first tables lie; tables of VHDX begin at 192 KiB and 1 MiB.
_PLACES = st.one_of(
    st.integers(0, 700),
    st.integers(1 << 9, 1 << 14),
    st.integers(192 << 10, (192 << 10) + 200),
    st.integers(1 << 20, (1 << 20) + 400),
    st.integers(-2048, -1),
)
_VALUES = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.sampled_from([bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7)]),
    st.integers(0, 64).map(lambda bit: (1 << bit).to_bytes(9, "big")[-8:]),
    st.integers(0, 64).map(lambda bit: (1 << bit).to_bytes(9, "little")[:8]),
)
_PATCHES = st.lists(st.tuples(_PLACES, _VALUES), max_size=6)
_ENDS = st.one_of(st.none(), st.integers(0, 4096), st.integers(0, 8 << 20))


def mutated(image: bytes, patches: list[tuple[int, bytes]], end: int | None) -> bytes:
    """Overwrite some bytes of an image, wherever it has them, and cut it off."""
    bent = bytearray(image)
    for place, value in patches:
        at = place % len(bent)
        bent[at : at + len(value)] = value[: len(bent) - at]
    return bytes(bent[:end])


def judged(disk_format: str, content: bytes) -> SourceFormat | None:
    """Inspect and judge content; None where it is refused."""
    inspection = Inspection()
    inspection.feed(content)
    image = GlanceImage(
        image_id=ImageId("11111111-2222-3333-4444-555555555555"),
        name="",
        status="active",
        disk_format=disk_format,
        container_format="bare",
        size=len(content),
    )
    try:
        return admit_content(image, inspection.finish(), RULES)
    except ImageUnacceptableError:
        return None


@pytest.mark.parametrize("kind", GOOD)
@settings(FUZZ, max_examples=120)
@given(patches=_PATCHES, end=_ENDS)
def test_a_bent_image_is_admitted_as_what_it_is_called_or_refused(
    kind: str, patches: list[tuple[int, bytes]], end: int | None
) -> None:
    """Nothing but a refusal comes out of the policy, and no other format goes in."""
    disk_format, build = GOOD[kind]
    found = judged(disk_format, mutated(build(), patches, end))
    expected = {"iso": "raw", "vhd": "vpc"}.get(disk_format, disk_format)
    assert found is None or found.value == expected


@pytest.mark.parametrize("kind", GOOD)
@settings(FUZZ, max_examples=60)
@given(patches=_PATCHES, end=_ENDS)
def test_what_is_kept_of_the_beginning_is_judged_as_all_of_it(
    kind: str, patches: list[tuple[int, bytes]], end: int | None
) -> None:
    """No rule looks at what the inspection does not keep."""
    content = mutated(GOOD[kind][1](), patches, end)
    head, tail = content[: headers.HEAD_LENGTH], content[-headers.TAIL_LENGTH :]
    kept = head[: headers.wanted(head)]
    whole = headers.examine(head, tail, len(content))
    assert headers.examine(kept, tail, len(content)) == whole


@settings(FUZZ, max_examples=150)
@given(
    disk_format=st.sampled_from(["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "ami"]),
    start=st.sampled_from([b"", b"QFI\xfb", b"KDMV", b"conectix", b"vhdxfile", b"# Disk Desc"]),
    rest=st.binary(max_size=2000),
)
def test_any_bytes_are_judged(disk_format: str, start: bytes, rest: bytes) -> None:
    """Bytes without any sense end in a verdict too."""
    found = judged(disk_format, start + rest)
    assert found is None or found.value in {"raw", disk_format, "vpc"}


@pytest.mark.parametrize(
    "row", [row for row in CORPUS if row.container_format == "bare"][::4], ids=str
)
def test_an_inspection_holds_little_however_large_the_tables_claim_to_be(row: Row) -> None:
    """A length that a header states is never one of memory."""
    content = row.build()
    tracemalloc.start()
    try:
        inspection = Inspection()
        inspection.feed(content)
        inspection.finish()
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["raw", "iso", "qcow2"])
def test_an_inspection_keeps_little_behind_the_beginning(kind: str) -> None:
    """Many large images that come at once cost no MiB each, nor when they have come."""
    content = GOOD[kind][1]().ljust(4 << 20, b"\1")
    number = 4
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        inspections = [Inspection() for _ in range(number)]
        for each in inspections:
            each.feed(content)
        during, _ = tracemalloc.get_traced_memory()
        for each in inspections:
            each.finish()
        inspections.clear()
        afterwards, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert during - before < number * MOST_KEPT
    assert afterwards - before < number * MOST_KEPT


_HEADERS = st.one_of(
    st.binary(max_size=300).map(lambda rest: b"QFI\xfb" + rest),
    st.tuples(_PATCHES, _ENDS).map(lambda bent: mutated(qcow2.sound(), *bent)),
    st.tuples(
        st.sampled_from(["", "json:", "json:{'file': '", "file:", "nbd:", "../", "/proc/self/"]),
        st.text(max_size=200),
        _PATCHES,
    ).map(
        lambda told: mutated(
            qcow2.named(os.fsencode((told[0] + told[1]).encode("utf-8", "replace"))), told[2], None
        )
    ),
)


@settings(FUZZ, max_examples=250)
@given(content=_HEADERS)
def test_any_header_is_read_or_declared_to_be_none(tmp_path: Path, content: bytes) -> None:
    """The reader raises its own error alone; what it gives is within its bounds."""
    path = tmp_path / "disk"
    path.write_bytes(content)
    with contextlib.suppress(NotQcow2Error):
        header = read_header(path)
        assert 9 <= header.cluster_bits <= 21
        assert len(os.fsencode(header.backing_file or "")) <= 1023


@settings(FUZZ, max_examples=250)
@given(contents=st.lists(_HEADERS, min_size=1, max_size=3))
def test_any_files_can_be_scanned(tmp_path: Path, contents: list[bytes]) -> None:
    """Whatever guests leave in the folders, a scan ends, and its doubts name paths."""
    bases, instances = tmp_path / "bases", tmp_path / "instances"
    for folder in (bases, instances):
        folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (instances / f"{number}.disk").write_bytes(content)
    found = OverlayScanner(bases).scan(instances)
    assert all(doubt.path.is_absolute() for doubt in found.doubts)


@settings(FUZZ, max_examples=150)
@given(before=st.text(max_size=60), after=st.text(max_size=60), quote=st.sampled_from("'\""))
def test_a_base_in_any_quotes_is_found(before: str, after: str, quote: str) -> None:
    """Whatever surrounds it in a ``json:`` name, a path in quotes that QEMU can see is seen."""
    bases = Path("/bases")
    name = f"{base_id(1)}.raw"
    quiet = "".join(letter for letter in before if letter not in "'\"\\")
    told = f"json:{quiet}{quote}{bases}/{name}{quote},{after}"
    assert f"{bases}/{name}" in file_names(told).paths
    assert name in bases_named(bases, [told])
