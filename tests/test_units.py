"""Sizes and durations as an operator writes them."""

from __future__ import annotations

import pytest

from cacheagent.units import format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("1KiB", 1024),
        ("50GiB", 50 << 30),
        ("1.5TiB", 3 << 39),
        ("2 MB", 2_000_000),
        ("3TB", 3 * 10**12),
        ("1KB", 1000),
        ("5GB", 5 * 10**9),
    ],
)
def test_a_size_has_a_number_and_a_unit(text: str, size: int) -> None:
    """Both binary and decimal units mean what they say; a bare number is bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e3", "5gib", "20G", "1 2", "\u0661GiB", "1.GiB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """A typing error never becomes a size."""
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("7d", 604800), ("60s", 60), ("500ms", 0.5), ("1.5s", 1.5)],
)
def test_a_duration_adds_its_parts_up(text: str, seconds: float) -> None:
    """Parts with units become seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10 m", "m", "-5s", "5s5s", "1w", "1h,30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A typing error never becomes a duration."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (20 << 30, "20.0 GiB"),
        (3 << 40, "3.0 TiB"),
        ((1 << 40) - 1, "1.0 TiB"),
        (1048575, "1.0 MiB"),
        (972 << 30, "972.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_a_size_is_written_for_people(size: int, text: str) -> None:
    """The largest unit that leaves at least one."""
    assert format_size(size) == text
