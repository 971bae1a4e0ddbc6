"""How long the daemon takes until it is ready, on a host with many disks.

The reference is a start with empty folders. CPU is that of the daemon until it says that it is
ready; what it does afterwards beside the requests is not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.agent import daemon_on
from benchmarks.figures import Figure, Goal, Run
from benchmarks.fleet import Fleet, make_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.costs import Cost


def measure(run: Run) -> None:
    """Start with a catalog, without, and with the one that was made anew."""
    folder = run.folder / "agent"
    make_fleet(folder, Fleet.of(run))
    reference = start(run.folder / "empty", "empty folders")
    run.costs += [
        reference,
        start(folder, "with the catalog"),
        start(_without_catalog(folder), "the catalog was deleted"),
        start(folder, "with the catalog that was made anew"),
    ]
    run.figures += [
        Figure(
            what=cost.what,
            measured=cost.wall,
            unit="s",
            reference=reference.wall,
            beside=reference.what,
            goal=Goal(bound=5),
        )
        for cost in run.costs[1:]
    ]


def start(folder: Path, what: str) -> Cost:
    """Start a daemon, wait until it is ready, and stop it."""
    with daemon_on(folder, what=what) as daemon:
        return daemon.start


def _without_catalog(folder: Path) -> Path:
    for path in (folder / "state").glob("catalog.db*"):
        path.unlink()
    return folder
