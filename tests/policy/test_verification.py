"""What a base must be if nobody touched it, and which one is read again next."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cacheagent.model import Base, BaseState, Digest, DiskFormat
from cacheagent.policy.verification import (
    expected_digest,
    has_right_length,
    is_as_it_came,
    next_due,
)
from tests.fakes.values import NOW, base

WEEK = 604800.0
CONVERTED = replace(base(1), source_format="qcow2")
PLAIN = replace(base(1), source_format="raw")
KEPT = replace(base(1), source_format="qcow2", format=DiskFormat.QCOW2)
DIGEST = Digest("sha256", "ab" * 32)


@pytest.mark.parametrize(
    ("source_format", "disk_format", "as_it_came"),
    [
        ("raw", DiskFormat.RAW, True),
        ("qcow2", DiskFormat.QCOW2, True),
        ("qcow2", DiskFormat.RAW, False),
        ("vmdk", DiskFormat.RAW, False),
        ("vpc", DiskFormat.RAW, False),
        ("vdi", DiskFormat.RAW, False),
        ("vhdx", DiskFormat.RAW, False),
    ],
)
def test_only_a_converted_base_is_another_file(
    source_format: str, disk_format: DiskFormat, *, as_it_came: bool
) -> None:
    """Raw and kept qcow2 images are their bases; all else was converted."""
    one = replace(base(1), source_format=source_format, format=disk_format)
    assert is_as_it_came(one) is as_it_came


@pytest.mark.parametrize("one", [PLAIN, KEPT])
def test_what_came_as_it_is_has_the_digest_that_names_it(one: Base) -> None:
    """Nothing need be remembered to verify it, and what is remembered does not count."""
    named = Digest("sha512", f"{1:0128x}")
    assert expected_digest(one) == named
    assert expected_digest(replace(one, file_digest=DIGEST)) == named


def test_converted_base_has_the_digest_that_was_taken() -> None:
    """Before one was taken nobody knows what it should be."""
    assert expected_digest(CONVERTED) is None
    assert expected_digest(replace(CONVERTED, file_digest=DIGEST)) == DIGEST


@pytest.mark.parametrize(
    ("one", "length", "right"),
    [
        (PLAIN, 1000, True),
        (PLAIN, 1024, False),
        (KEPT, 1000, True),
        (CONVERTED, 1 << 30, True),
        (CONVERTED, (1 << 30) - 100, True),
        (CONVERTED, (1 << 30) - 512, False),
        (CONVERTED, 1000, False),
    ],
)
def test_length_is_known_beforehand(one: Base, length: int, *, right: bool) -> None:
    """As downloaded, or that of the disk; the last sector need not be whole."""
    assert has_right_length(one, length) is right


def test_nothing_is_due_before_its_time() -> None:
    """A base counts from when it was read last, or came."""
    assert next_due([PLAIN], WEEK, NOW + timedelta(seconds=WEEK - 1)) is None
    assert next_due([PLAIN], WEEK, NOW + timedelta(seconds=WEEK)) == PLAIN
    read = replace(PLAIN, verified_at=NOW + timedelta(days=1))
    assert next_due([read], WEEK, NOW + timedelta(seconds=WEEK)) is None


def test_the_one_read_longest_ago_is_next() -> None:
    """Of several that are due, the order is that of their last reading."""
    bases = [
        replace(base(1), source_format="raw", verified_at=NOW),
        replace(base(2), source_format="raw", fetched_at=NOW - timedelta(days=1)),
        replace(base(3), source_format="raw", verified_at=NOW - timedelta(hours=1)),
    ]
    assert next_due(bases, WEEK, NOW + timedelta(days=30)) == bases[1]


def test_a_digest_that_is_missing_comes_first() -> None:
    """It has to be taken soon after the conversion, even where nothing else is to be read."""
    assert next_due([PLAIN, CONVERTED], WEEK, NOW + timedelta(days=30)) == CONVERTED
    assert next_due([PLAIN, CONVERTED], 0, NOW) == CONVERTED


def test_interval_0_is_never() -> None:
    """Where the operator wants it so, nothing is read again."""
    assert next_due([PLAIN], 0, NOW + timedelta(days=3000)) is None


def test_a_time_to_come_tells_nothing() -> None:
    """After the clock was set back a base does not wait until it has caught up."""
    read = replace(PLAIN, verified_at=NOW + timedelta(days=1000))
    assert next_due([read], WEEK, NOW) == read


def test_only_bases_in_use_are_read() -> None:
    """What is on its way out, or in quarantine, is left alone."""
    for state in (BaseState.EVICTING, BaseState.QUARANTINED):
        assert next_due([replace(CONVERTED, state=state)], WEEK, NOW) is None
