"""What whoever repeats a piece of work can count on."""

from __future__ import annotations

import pytest

from cacheagent.sync.backoff import Attempts, Backoff


@pytest.mark.parametrize(("failures", "longest"), [(1, 1), (2, 2), (4, 8), (5, 10), (5000, 10)])
def test_a_wait_doubles_up_to_the_ceiling(failures: int, longest: float) -> None:
    """The wait after so many failures lies between half and all of the doubled first one."""
    assert longest / 2 <= Backoff(first=1, ceiling=10).delay(failures) <= longest


@pytest.mark.parametrize(("asked", "expected"), [(7.0, 7.0), (100_000.0, 60.0)])
def test_the_wait_that_the_server_asks_for_is_kept_within_reason(
    asked: float, expected: float
) -> None:
    """A longer wait than ours is granted, up to a bound."""
    assert Backoff(first=1, longest_asked=60).delay(1, asked) == expected


class _Waits:
    """Remembers the waits instead of waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def test_so_many_failures_in_a_row_are_forgiven_as_there_are_retries() -> None:
    """Two retries mean two waits; the third failure is the last and waits for nothing."""
    waits = _Waits()
    attempts = Attempts(Backoff(pause=waits), retries=2)
    assert [await attempts.again() for _ in range(3)] == [True, True, False]
    assert len(waits.seconds) == 2


async def test_progress_forgives_what_was_before() -> None:
    """Failures count in a row only: after progress the retries are there anew."""
    attempts = Attempts(Backoff(pause=_Waits()), retries=1)
    assert await attempts.again()
    attempts.progress()
    assert await attempts.again()
    assert not await attempts.again()
