"""How far an ingest has come, for those who watch it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cacheagent.model import IngestPhase, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 5.0
"""The rate is taken over this many seconds."""


class Meter:
    """Counts the bytes of one ingest, phase by phase; ``clock`` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._phase = IngestPhase.QUEUED
        self._done = 0
        self._total = 0

    def enter(self, phase: IngestPhase, total: int, done: int = 0) -> None:
        """Begin a phase of ``total`` bytes, of which ``done`` were there before."""
        self._phase, self._total, self._done = phase, total, done
        self._samples.clear()
        self._samples.append((self._clock(), done))

    def reach(self, done: int) -> None:
        """Say that ``done`` bytes of the phase are done."""
        now = self._clock()
        self._done = done
        self._samples.append((now, done))
        while self._samples[0][0] < now - WINDOW:
            self._samples.popleft()

    def progress(self) -> Progress:
        """Give what is known now."""
        rate = 0.0
        if self._samples:
            started, done = self._samples[0]
            elapsed = self._clock() - started
            rate = (self._done - done) / elapsed if elapsed > 0 else 0.0
        return Progress(self._phase, self._done, self._total, rate)
