"""How often somebody may do something: a rate with a burst, for each one alone."""

from __future__ import annotations

_CLEAN_AT = 1024
"""Names that are kept before those who have their whole burst again are forgotten."""


class Rates:
    """Counts what each of many does against a rate: ``rate`` per second, ``burst`` at once.

    It is a token bucket for each name, kept as one number: the time at which the bucket is full
    again (GCRA, ITU-T I.371). Who is not known has a full bucket. Times are those that the caller
    hands in, in seconds; memory grows with those alone whose bucket is not full.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._cost = 1 / rate
        self._depth = burst / rate
        self._full_at: dict[str, float] = {}

    def take(self, who: str, now: float) -> float:
        """Count one for ``who`` and give 0; else count none, and give the seconds until it may."""
        full_at = max(self._full_at.get(who, now), now) + self._cost
        early = full_at - now - self._depth
        # Sums of fractions are not exact: the last one of a burst is not early by a rounding.
        if early > self._cost / 1000:
            return early
        if who not in self._full_at and len(self._full_at) >= _CLEAN_AT:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        self._full_at[who] = full_at
        return 0.0

    def __len__(self) -> int:
        """Give how many are remembered."""
        return len(self._full_at)
