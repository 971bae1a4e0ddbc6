"""Work of several steps for many at once: what each waits for is done for all together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cacheagent.sync.lane import attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from cacheagent.sync.lane import Ended

W = TypeVar("W")


def lockstep(
    works: Sequence[Generator[W, Any, Any]], do: Callable[[Sequence[W]], Sequence[Ended]]
) -> list[Ended]:
    """Run each generator to its end, a step of all at a time; give what each returns or raises.

    A generator yields what it wants done. ``do`` gets what all of them want, and gives as many
    outcomes in the same order; each generator goes on with its own, or with its error raised. An
    error ends the one that it is of, and no other; what ``do`` raises is raised in all of them.
    """
    ended: dict[int, Ended] = {}
    going: dict[int, Ended] = dict.fromkeys(range(len(works)), (None, None))
    while going:
        wanted: dict[int, W] = {}
        for number, outcome in going.items():
            try:
                wanted[number] = _step(works[number], outcome)
            except StopIteration as end:
                ended[number] = end.value, None
            except BaseException as error:  # noqa: BLE001 -- whatever it is, it is the caller's
                ended[number] = None, error
        going = dict(zip(wanted, _done(do, tuple(wanted.values())), strict=True))
    return [ended[number] for number in range(len(works))]


def _done(do: Callable[[Sequence[W]], Sequence[Ended]], wanted: Sequence[W]) -> Sequence[Ended]:
    if not wanted:
        return ()
    done, error = attempt(partial(do, wanted))
    return done if error is None else [(None, error)] * len(wanted)


def _step(work: Generator[W, Any, Any], outcome: Ended) -> W:
    result, error = outcome
    return work.send(result) if error is None else work.throw(error)
