"""Places that are bounded over all, and for each name."""

from __future__ import annotations

from cacheagent.sync.seats import Seats


def test_nobody_holds_more_than_its_share() -> None:
    """One name that takes all it gets leaves places for another."""
    seats = Seats(total=4, each=2)
    assert [seats.take("greedy") for _ in range(3)] == [True, True, False]
    assert seats.take("other")
    assert len(seats) == 3


def test_there_are_no_more_than_all() -> None:
    """Many names together get what there is."""
    seats = Seats(total=3, each=2)
    assert [seats.take(who) for who in "abcd"] == [True, True, True, False]


def test_a_place_that_was_given_back_can_be_taken() -> None:
    """Who leaves makes room, for the same name and for others."""
    seats = Seats(total=2, each=2)
    assert [seats.take("a"), seats.take("a"), seats.take("b")] == [True, True, False]
    seats.give("a")
    assert [seats.take("b"), seats.take("a")] == [True, False]
    seats.give("a")
    seats.give("b")
    assert len(seats) == 0
