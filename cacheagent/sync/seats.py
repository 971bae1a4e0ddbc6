"""Places that many share, of which nobody may hold all."""

from __future__ import annotations

from collections import Counter


class Seats:
    """A bounded number of places: ``total`` over all, ``each`` for one name."""

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._held: Counter[str] = Counter()

    def take(self, who: str) -> bool:
        """Take a place for ``who``, or tell that there is none."""
        if self._held.total() >= self._total or self._held[who] >= self._each:
            return False
        self._held[who] += 1
        return True

    def give(self, who: str) -> None:
        """Give back a place that ``who`` has taken."""
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]

    def __len__(self) -> int:
        """Give how many places are taken."""
        return self._held.total()
