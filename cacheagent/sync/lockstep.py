"""Work of several steps, done for many at once: all take a step before any takes the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from cacheagent.sync.lane import Ended


def lockstep(works: Sequence[Generator[None, None, Any]]) -> list[Ended]:
    """Run each generator to its end, a step of all at a time; give what each returns or raises.

    An error ends the one that it is of, and no other.
    """
    ended: dict[int, Ended] = {}
    while going := [number for number in range(len(works)) if number not in ended]:
        for number in going:
            try:
                next(works[number])
            except StopIteration as end:
                ended[number] = end.value, None
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's
                ended[number] = None, error
    return [ended[number] for number in range(len(works))]
