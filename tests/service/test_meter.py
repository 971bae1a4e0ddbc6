"""Progress that people can rely on."""

from __future__ import annotations

from cacheagent.model import IngestPhase
from cacheagent.service.meter import Meter


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        """Give the time that was set."""
        return self.now


def test_queued_ingest_has_no_figures() -> None:
    """Before the first byte there is nothing to tell, and no division by zero."""
    progress = Meter(Clock()).progress()
    assert (progress.phase, progress.bytes_done, progress.bytes_total) == (IngestPhase.QUEUED, 0, 0)
    assert progress.bytes_per_second == 0


def test_rate_is_that_of_late() -> None:
    """A download that became slow does not live on its fast beginning."""
    clock = Clock()
    meter = Meter(clock)
    meter.enter(IngestPhase.DOWNLOADING, 10_000)
    clock.now += 1
    meter.reach(5000)
    assert meter.progress().bytes_per_second == 5000
    for _ in range(10):
        clock.now += 1
        meter.reach(meter.progress().bytes_done + 10)
    assert meter.progress().bytes_per_second == 10
    assert meter.progress().bytes_done == 5100


def test_resumed_bytes_do_not_count_as_speed() -> None:
    """What an earlier try left is done, and says nothing about the rate."""
    clock = Clock()
    meter = Meter(clock)
    meter.enter(IngestPhase.DOWNLOADING, 10_000, 9_000)
    clock.now += 1
    meter.reach(9_100)
    assert meter.progress().bytes_per_second == 100
