"""The benchmarks still run, each goal is judged, and what must start no process starts none."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.cold import Came, Found, References
from benchmarks.costs import Cost
from benchmarks.figures import Figure, Goal, Run
from benchmarks.growth import steepest
from benchmarks.report import BEGIN, END, QUICK, README, RESULTS, as_part, save
from benchmarks.tracing import calls_in
from tests.needs import require_programs

ROOT = Path(__file__).parent.parent

GOALS = {
    "warm": 4,
    "cold": 14,
    "many": 2,
    "growth": 14,
    "memory": 4,
    "first_boot": 0,
    "prune_pass": 8,
    "start_up": 3,
}
"""How many figures of a part have a goal."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs(part: str, tmp_path: Path) -> None:
    """A quick run measures what a full one does, and ends with a verdict on each goal."""
    require_programs("qemu-img", "curl", "fincore", "findmnt")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), part]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert QUICK in ended.stdout
    figures: list[dict[str, Any]] = _results(tmp_path)[part]["figures"]
    assert len([figure for figure in figures if figure["goal"]]) == GOALS[part]
    for figure in figures:
        assert (figure["verdict"] != "") == (figure["goal"] != "")
        # strace may not be there, and a small image be converted before anybody looks.
        unseen = part == "cold" and "conver" in figure["what"]
        assert figure["measured"] is not None or part == "warm" or unseen, figure
        assert f"| {figure['what']} |" in ended.stdout
    started = [each["measured"] for each in figures if "processes" in each["what"]]
    assert set(started) <= {0, None}


def _results(folder: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((folder / RESULTS).read_text())["parts"]
    return parts


def _run(folder: Path, measured: float | None) -> Run:
    """Give a run that has found one thing, which should be 2 at most."""
    run = Run(folder=folder, quick=True, drawings=folder)
    figure = Figure(what="a thing", measured=measured, unit="ms", reference=4, goal=Goal(bound=2))
    run.figures.append(figure)
    run.costs.append(Cost(what="a thing", wall=1.0))
    return run


@pytest.mark.parametrize(
    ("measured", "verdict"), [(2, "reached"), (2.1, "not reached"), (None, "not measured")]
)
def test_a_goal_is_judged(tmp_path: Path, measured: float | None, verdict: str) -> None:
    """The bound itself still reaches the goal; what is not known does not."""
    part = as_part(_run(tmp_path, measured))
    assert part["figures"][0]["verdict"] == verdict


def test_a_ratio_is_judged() -> None:
    """A goal may be about the reference, and may be a lower bound."""
    at_least = Goal(of="ratio", kind="at least", bound=0.5)
    figure = Figure(what="a thing", measured=4, unit="/s", reference=10, goal=at_least)
    assert (figure.ratio, figure.verdict) == (0.4, "not reached")
    assert at_least.text(figure.unit) == "at least 0.5 times"


def test_parts_that_were_not_measured_keep_their_figures(tmp_path: Path) -> None:
    """The page and the JSON hold the last figures of each part; the words around them stay."""
    readme = tmp_path / README
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    save(tmp_path, {"cores": "2"}, {"one": as_part(_run(tmp_path, 1))}, quick=False)
    save(tmp_path, {"cores": "2"}, {"two": as_part(_run(tmp_path, 3))}, quick=False)
    assert set(_results(tmp_path)) == {"one", "two"}
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| one | a thing | 1 ms | 4 ms | 0.25 | at most 2 ms | reached |" in text
    assert "| two | a thing | 3 ms | 4 ms | 0.75 | at most 2 ms | not reached |" in text
    assert "old" not in text


def test_quick_figures_are_told_from_full_ones(tmp_path: Path) -> None:
    """Nobody takes figures of small sizes for results: they are marked, and never mixed."""
    page = f"{BEGIN}\nold\n{END}\n"
    (tmp_path / README).write_text(page)
    save(tmp_path, {"cores": "2"}, {"one": as_part(_run(tmp_path, 1))}, quick=True)
    assert (tmp_path / README).read_text() == page
    assert json.loads((tmp_path / RESULTS).read_text())["quick"] is True
    save(tmp_path, {"cores": "2"}, {"two": as_part(_run(tmp_path, 3))}, quick=False)
    assert set(_results(tmp_path)) == {"two"}
    assert QUICK not in (tmp_path / README).read_text()


def test_a_quick_run_leaves_full_figures_alone(tmp_path: Path) -> None:
    """Where figures of a full run lie, a quick one is refused before it measures anything."""
    save(tmp_path, {"cores": "2"}, {"one": as_part(_run(tmp_path, 1))}, quick=False)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), "warm"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "holds figures of a full run" in ended.stderr) == (2, True)
    assert set(_results(tmp_path)) == {"one"}


def test_a_conversion_that_nobody_saw_is_not_measured() -> None:
    """A conversion without a time is no fast one."""
    each = [Came(cost=Cost(what=""), converting=one, resident=0) for one in (0.3, 0.1, 0.2)]
    parts = [References(tried=[], parts=[], conversion=Cost(what="", wall=0.5))] * 3
    assert Found(parts=parts, came=each).conversion()[0] == 0.2
    each[1].converting = None
    assert Found(parts=parts, came=each).conversion()[0] is None


def test_growth_is_told_by_its_exponent() -> None:
    """What takes a square takes 2; what begins to grow at the end is not hidden by its mean."""
    assert steepest({10: 100.0, 100: 10_000.0, 1000: 1_000_000.0}) == pytest.approx(2)
    assert steepest({10: 1.0, 100: 1.0, 1000: 10.0}) == pytest.approx(1)
    assert math.isclose(steepest({10: 3.0, 100: 3.0}), 0, abs_tol=1e-9)


def test_a_trace_is_counted() -> None:
    """A call that was interrupted counts once, and a new thread is no process."""
    trace = """\
7 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SETTLS} => {parent_tid=[8]}, 88) = 8
7 vfork( <unfinished ...>
8 fsync(5 <unfinished ...>
7 <... vfork resumed>)               = 9
8 <... fsync resumed>)               = 0
10 fdatasync(6)                      = 0
"""
    assert calls_in(trace) == {"vfork": 1, "fsync": 1, "fdatasync": 1}


def test_an_unknown_part_is_refused() -> None:
    """Whoever mistypes a part is told so at once."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "wram"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "no such part: wram" in ended.stderr) == (2, True)
