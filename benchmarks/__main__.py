"""Runs the benchmarks: all parts, or those that are named.

python -m benchmarks [--quick] [--folder DIR] [--results DIR] [PART ...]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import (
    cold,
    first_boot,
    growth,
    machine,
    many,
    memory,
    prune_pass,
    report,
    start_up,
    warm,
)
from benchmarks.figures import Run

PARTS = {
    "warm": warm.measure,
    "cold": cold.measure,
    "many": many.measure,
    "growth": growth.measure,
    "memory": memory.measure,
    "first_boot": first_boot.measure,
    "prune_pass": prune_pass.measure,
    "start_up": start_up.measure,
}

HERE = Path(__file__).parent


def main() -> None:
    """Measure, write down, and print."""
    asked = _arguments()
    # What was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = asked.results or (None if asked.quick else HERE)
    for folder in (asked.folder, asked.results):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, report.Part] = {}
    text = ""
    for name in asked.parts or PARTS:
        print(f"== {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=asked.folder) as place:
            run = Run(folder=Path(place), quick=asked.quick, drawings=results or Path(place))
            PARTS[name](run)
            about = machine.describe(run.folder)
        found[name] = report.as_part(run)
        text = report.as_text(about, found, quick=asked.quick)
        if results:
            report.save(results, about, found, quick=asked.quick)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the agent beside what cannot be avoided.",
        epilog="All parts take about 20 minutes, with --quick half a minute. What each of them"
        " measures is in benchmarks/README.md.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument(
        "--results",
        type=Path,
        help="where to write results.json and growth.svg, and the tables into a README.md with"
        " the two markers (default: benchmarks/; quick: nowhere, and never into a README.md)",
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if asked.quick and asked.results and report.is_full(asked.results):
        parser.error(f"{asked.results} holds figures of a full run; --quick would replace them")
    return asked


if __name__ == "__main__":
    main()
