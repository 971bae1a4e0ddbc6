"""Sizes and durations as people write them, and sizes as people read them."""

from __future__ import annotations

import re
from decimal import Decimal

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_DURATION_UNITS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)", re.ASCII)


def parse_size(text: str) -> int:
    """Take ``"50GiB"``, ``"1.5 TB"`` or ``"4096"`` as bytes, rounded down.

    Raises: ``ValueError`` with a sentence, where there is no number or the unit is unknown.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _SIZE_UNITS:
        raise ValueError(
            "is not a size: write a number of bytes, or one with B, KiB, MiB, GiB, TiB, KB, MB, "
            "GB or TB"
        )
    return int(Decimal(match[1]) * _SIZE_UNITS[match[2]])


def parse_duration(text: str) -> float:
    """Take ``"10m"``, ``"1h30m"``, ``"7d"`` or ``"500ms"`` as seconds.

    Raises: ``ValueError`` with a sentence, where it cannot be read or names a unit twice.
    """
    parts = _DURATION_PART.findall(text)
    units = [unit for _, unit in parts]
    if "".join(number + unit for number, unit in parts) != text or not parts:
        raise ValueError("is not a duration: write seconds as a number, or one like 1h30m or 500ms")
    if len(set(units)) != len(units):
        raise ValueError("is not a duration: it names a unit twice")
    return float(sum(Decimal(number) * _DURATION_UNITS[unit] for number, unit in parts))


def format_size(size: float) -> str:
    """Write bytes with the largest binary unit that leaves at least 1, as ``1.5 GiB``."""
    text = f"{size:.0f}"
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        # What is written decides: 1023.99 GiB would be 1024.0 GiB.
        if float(text) < 1 << 10:
            break
        unit, text = larger, f"{size / _SIZE_UNITS[larger]:.1f}"
    return f"{text} {unit}"
