"""Lines over logarithmic axes, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH, _HEIGHT = 380, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 60, 40, 20, 50
_LEGEND = 24
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind as well (Okabe and Ito)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points of positive numbers, by their first."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines over one axis, which the title names."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From numbers to places, by whole decades."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Scale:
        low = math.floor(math.log10(min(values)) + 1e-9)
        high = math.ceil(math.log10(max(values)) - 1e-9)
        return cls(low, max(high, low + 1), start, end)

    def at(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    @property
    def decades(self) -> Sequence[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw(panels: Sequence[Panel], unit: str) -> str:
    """Draw panels beside one another, all with the same lines and the same upright axis."""
    values = [y for panel in panels for line in panel.lines for _, y in line.points]
    upright = _Scale.over(values, _HEIGHT - _BOTTOM, _TOP)
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * _WIDTH} 0)">')
        parts += [*_panel(panel, upright, unit), "</g>"]
    parts += [*_legend(panels[0], width), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, upright: _Scale, unit: str) -> Iterator[str]:
    values = [x for line in panel.lines for x, _ in line.points]
    level = _Scale.over(values, _LEFT, _WIDTH - _RIGHT)
    yield _text(_WIDTH // 2, _HEIGHT - 10, panel.title)
    yield _text(_LEFT, _TOP - 16, unit)
    for value in upright.decades:
        y = upright.at(value)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, f"{value:g}", "end")
    for value in level.decades:
        x = level.at(value)
        yield f'<path d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>'
        yield _text(x, _HEIGHT - _BOTTOM + 18, f"{value:g}")
    for line, colour in zip(panel.lines, _COLOURS, strict=False):
        places = [(level.at(x), upright.at(y)) for x, y in line.points]
        path = " ".join(f"{x},{y}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places)


def _legend(panel: Panel, width: int) -> Iterator[str]:
    each = width / len(panel.lines)
    for number, (line, colour) in enumerate(zip(panel.lines, _COLOURS, strict=False)):
        x = round(each * number + 8)
        yield f'<rect x="{x}" y="{_HEIGHT + 2}" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 17, _HEIGHT + 12, line.name, "start")


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
