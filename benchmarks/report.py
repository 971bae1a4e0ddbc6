"""The table in README.md and the JSON beside it; parts that were not measured keep theirs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.figures import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.figures import Figure, Run

README, RESULTS, DRAWING = "README.md", "results.json", "growth.svg"
QUICK = "quick: small sizes; the verdicts mean nothing"
BEGIN = "<!-- written by scripts/bench: begin -->"
END = "<!-- written by scripts/bench: end -->"

_CAPTION = "Seconds by the number of disks, and of bases"
_FIGURES = ("part", "what", "measured", "reference", "ratio", "goal", "verdict")
_COSTS = ("part", "what", "s", "CPU s", "processes", "fsyncs", "peak MiB", "written MiB")
_MIB = 1 << 20
_DIGITS = 5

Part = dict[str, Any]


def as_part(run: Run) -> Part:
    """Give what a part found, as JSON has it."""
    return {
        "figures": [_rounded(_figure(figure)) for figure in run.figures],
        "costs": [_rounded(asdict(cost)) for cost in run.costs],
    }


def _rounded(row: Mapping[str, object]) -> dict[str, object]:
    """Leave what can be read of a figure: more digits say nothing."""
    return {
        name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
        for name, value in row.items()
    }


def _figure(figure: Figure) -> dict[str, object]:
    goal = figure.goal
    return {
        "what": figure.what,
        "unit": figure.unit,
        "measured": figure.measured,
        "reference": figure.reference,
        "beside": figure.beside,
        "ratio": figure.ratio,
        "goal": "" if goal is None else goal.text(figure.unit),
        "verdict": figure.verdict,
    }


def is_full(folder: Path) -> bool:
    """Tell whether figures of a full run lie in ``folder``."""
    results = folder / RESULTS
    return results.exists() and not json.loads(results.read_text()).get("quick", False)


def save(
    folder: Path, machine: Mapping[str, str], found: Mapping[str, Part], *, quick: bool
) -> None:
    """Write what was found into the JSON in ``folder``, and into README.md unless it is quick.

    Figures of quick runs and of full ones are not mixed: those of the other kind go.
    """
    results = folder / RESULTS
    keeps = results.exists() and is_full(folder) != quick
    known = json.loads(results.read_text())["parts"] if keeps else {}
    parts = {**known, **found}
    document = {"quick": quick, "machine": machine, "parts": parts}
    results.write_text(json.dumps(document, indent=1) + "\n")
    readme = folder / README
    if readme.exists() and not quick:
        text = as_text(machine, parts, quick=False)
        drawn = f"![{_CAPTION}]({DRAWING})\n\n" if (folder / DRAWING).exists() else ""
        section = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
        new = f"{BEGIN}\n{text}{drawn}{END}"
        readme.write_text(section.sub(lambda _: new, readme.read_text()))


def as_text(machine: Mapping[str, str], parts: Mapping[str, Part], *, quick: bool) -> str:
    """Write tables of Markdown."""
    head = f"\n{QUICK}\n" if quick else ""
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    figures = [_row(name, each) for name, part in parts.items() for each in part["figures"]]
    costs = [_cost(name, each) for name, part in parts.items() for each in part["costs"]]
    return f"{head}\n{told}.\n\n{_table(_FIGURES, figures)}\n{_table(_COSTS, costs)}\n"


def _row(part: str, figure: Mapping[str, Any]) -> Sequence[str]:
    unit = f" {figure['unit']}" if figure["unit"] else ""
    measured = number(figure["measured"], unit)
    reference = ": ".join(filter(None, (figure["beside"], number(figure["reference"], unit))))
    ratio = number(figure["ratio"])
    return (part, figure["what"], measured, reference, ratio, figure["goal"], figure["verdict"])


def _cost(part: str, cost: Mapping[str, Any]) -> Sequence[str]:
    sizes = (_mib(cost["peak"]), _mib(cost["written"]))
    counts = (_count(cost["processes"]), _count(cost["fsyncs"]))
    return (part, cost["what"], number(cost["wall"]), number(cost["cpu"]), *counts, *sizes)


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / _MIB:.0f}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
