"""What a run found: figures beside their references and goals, and what things cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.costs import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable

_LARGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound for a figure, or for its ratio to the reference."""

    of: Literal["measured", "ratio"] = "measured"
    kind: Literal["at most", "at least"] = "at most"
    bound: float

    def is_reached(self, figure: Figure) -> bool:
        """Say whether the figure keeps the bound; what could not be measured does not."""
        value = figure.measured if self.of == "measured" else figure.ratio
        if value is None:
            return False
        return value <= self.bound if self.kind == "at most" else value >= self.bound

    def text(self, unit: str) -> str:
        """Say what the goal is."""
        return f"{self.kind} {self.bound:g} {'times' if self.of == 'ratio' else unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing measured, beside a reference of the same run and in the same unit.

    None where this machine cannot measure it.
    """

    what: str
    measured: float | None
    unit: str
    reference: float | None = None
    beside: str = ""
    goal: Goal | None = None

    @property
    def ratio(self) -> float | None:
        """What was measured as a multiple of the reference; None without one."""
        if self.measured is None or not self.reference:
            return None
        return self.measured / self.reference

    @property
    def verdict(self) -> str:
        """What came of the goal; empty where there is none."""
        if self.goal is None:
            return ""
        if self.measured is None:
            return "not measured"
        return "reached" if self.goal.is_reached(self) else "not reached"


@dataclass(slots=True, kw_only=True)
class Run:
    """What a part gets: where to work, how much to do, and where to write down what it found.

    ``drawings`` is the folder for what is drawn.
    """

    folder: Path
    quick: bool
    drawings: Path
    figures: list[Figure] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    def scale(self, full: int, quick: int) -> int:
        """Give the size of something in a full run, or in a quick one."""
        return quick if self.quick else full


def middle(values: Iterable[float]) -> float:
    """Give the median."""
    return statistics.median(values)


def number(value: float | None, unit: str = "") -> str:
    """Write a figure with three digits, or all that it has before the point; empty for None."""
    if value is None:
        return ""
    if value == int(value) or abs(value) >= _LARGE:
        return f"{value:.0f}{unit}"
    return f"{value:.3g}{unit}"
