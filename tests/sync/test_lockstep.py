"""Work of several steps, done for many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.sync.lockstep import lockstep

if TYPE_CHECKING:
    from collections.abc import Generator


def counting(
    name: str, steps: int, seen: list[str], *, error: bool = False
) -> Generator[None, None, str]:
    """Work that notes each of its steps, and ends well or with an error."""
    for step in range(steps):
        seen.append(f"{name}{step}")
        yield
    if error:
        raise ValueError(name)
    return name


def test_all_take_a_step_before_any_takes_the_next() -> None:
    """The order is that of the steps; who has fewer of them ends earlier."""
    seen: list[str] = []
    works = [counting("a", 2, seen), counting("b", 1, seen), counting("c", 3, seen)]
    assert lockstep(works) == [("a", None), ("b", None), ("c", None)]
    assert seen == ["a0", "b0", "c0", "a1", "c1", "c2"]


def test_an_error_is_that_of_one() -> None:
    """Work that fails has its error as its outcome, and the others go on."""
    seen: list[str] = []
    (_, error), other = lockstep([counting("a", 0, seen, error=True), counting("b", 2, seen)])
    assert isinstance(error, ValueError)
    assert other == ("b", None)
    assert seen == ["b0", "b1"]


def test_nothing_to_do() -> None:
    """No work has no outcome."""
    assert lockstep([]) == []
