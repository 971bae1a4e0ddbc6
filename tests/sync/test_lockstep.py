"""Work of several steps, done for many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.sync.lockstep import lockstep

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from cacheagent.sync.lane import Ended


class Rounds:
    """Doubles what is wanted, and remembers what was wanted at the same time; fails for 0."""

    def __init__(self) -> None:
        self.seen: list[Sequence[int]] = []

    def do(self, wanted: Sequence[int]) -> list[Ended]:
        """Do what is wanted in one round."""
        self.seen.append(wanted)
        return [(each * 2, None) if each else (None, ValueError("zero")) for each in wanted]


def counting(*wanted: int) -> Generator[int, int, int]:
    """Want something in each step, and return the sum of what came of it."""
    total = 0
    for each in wanted:
        total += yield each
    return total


def catching() -> Generator[int, int, str]:
    """Want what fails, and go on all the same."""
    try:
        yield 0
    except ValueError as error:
        yield 5
        return str(error)
    return "no error"


def test_all_take_a_step_before_any_takes_the_next() -> None:
    """What the first steps want is done together; who has fewer steps ends earlier."""
    rounds = Rounds()
    works = [counting(1, 2), counting(3), counting(4, 5, 6), counting()]
    assert lockstep(works, rounds.do) == [(6, None), (6, None), (30, None), (0, None)]
    assert rounds.seen == [(1, 3, 4), (2, 5), (6,)]


def test_an_error_is_that_of_one() -> None:
    """Work whose step fails is told, and may end by it; the others go on."""
    rounds = Rounds()
    (_, error), other, caught = lockstep([counting(0, 1), counting(2, 3), catching()], rounds.do)
    assert isinstance(error, ValueError)
    assert other == (10, None)
    assert caught == ("zero", None)
    assert rounds.seen == [(0, 2, 0), (3, 5)]


def test_what_fails_for_all_is_told_to_each() -> None:
    """None of them is left where it waited: each can clean up behind itself."""

    def broken(wanted: Sequence[int]) -> list[Ended]:
        raise ValueError(f"no thread for {len(wanted)}")

    (_, error), other, caught = lockstep([counting(1), counting(), catching()], broken)
    assert isinstance(error, ValueError)
    assert other == (0, None)
    assert str(caught[1]) == "no thread for 1"


def test_nothing_to_do() -> None:
    """No work has no outcome."""
    assert lockstep([], Rounds().do) == []
