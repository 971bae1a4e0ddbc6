"""A rate for each one alone, with time as it is handed in."""

from __future__ import annotations

import pytest

from cacheagent.sync.rates import Rates


def test_a_burst_goes_through_and_then_the_rate_counts() -> None:
    """Whoever was quiet may do a burst at once, and goes on at the rate."""
    rates = Rates(rate=10, burst=5)
    assert [rates.take("a", 100.0) for _ in range(5)] == [0.0] * 5
    assert rates.take("a", 100.0) == pytest.approx(0.1)
    assert rates.take("a", 100.0) == pytest.approx(0.1), "who is refused pays nothing"
    assert rates.take("a", 100.1) == 0.0
    assert rates.take("a", 100.1) == pytest.approx(0.1)


def test_on_the_long_run_nobody_is_faster_than_the_rate() -> None:
    """A flood of ten seconds gets the burst and what the rate gives, and no more."""
    rates = Rates(rate=7, burst=3)
    passed = sum(rates.take("a", 5000.0 + step / 1000) == 0.0 for step in range(10_000))
    assert passed == 3 + 7 * 10 - 1


def test_one_does_not_pay_for_another() -> None:
    """A name that floods leaves the others their own burst."""
    rates = Rates(rate=1, burst=1)
    assert rates.take("flood", 0.0) == 0.0
    assert rates.take("flood", 0.0) > 0.0
    assert rates.take("other", 0.0) == 0.0


def test_who_has_its_whole_burst_again_is_forgotten() -> None:
    """Any number of names that come once does not grow the memory."""
    rates = Rates(rate=1, burst=1)
    for second in range(5000):
        assert rates.take(f"one {second}", float(second)) == 0.0
    assert len(rates) <= 1024
