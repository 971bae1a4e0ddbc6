"""As what a disk is wanted is known from the first who asks until nobody makes it any more."""

from __future__ import annotations

import pytest

from cacheagent.errors import DiskConflictError
from cacheagent.model import DiskSpec
from cacheagent.service.wanted import Wanted
from tests.fakes.values import NOW, disk_key

MIB = 1 << 20
KEY, OTHER = disk_key(1), disk_key(2)
SMALL, LARGE = (DiskSpec(image_id=None, size=size * MIB) for size in (1, 2))


def wanted() -> Wanted:
    """Begin with no disk."""
    return Wanted(lambda: NOW)


def test_the_name_is_free_when_the_last_one_has_gone() -> None:
    """A caller and its run may end in either order, and the next caller come in between."""
    disks = wanted()
    caller, run, late = (disks.asked(KEY, SMALL) for _ in range(3))
    assert caller.__enter__()
    assert not run.__enter__()
    caller.__exit__(None, None, None)
    late.__enter__()
    run.__exit__(None, None, None)
    assert disks.specs == {KEY: SMALL}
    late.__exit__(None, None, None)
    assert disks.specs == {}
    with disks.asked(KEY, LARGE):
        assert disks.specs == {KEY: LARGE}


def test_the_name_is_free_where_a_creation_fails() -> None:
    """The next request may ask for another disk."""
    disks = wanted()
    with pytest.raises(ValueError, match="no room"), disks.asked(KEY, SMALL):
        raise ValueError("no room")
    assert disks.specs == {}


def test_another_disk_of_the_name_is_a_conflict() -> None:
    """Whoever asks for it is refused with what is being made, and that goes on."""
    disks = wanted()
    with disks.asked(KEY, SMALL), disks.asked(OTHER, LARGE):
        with pytest.raises(DiskConflictError) as refused, disks.asked(KEY, LARGE):
            pass
        assert refused.value.existing["size_bytes"] == SMALL.size
        with pytest.raises(DiskConflictError):
            disks.promise(KEY, LARGE)
        with pytest.raises(DiskConflictError):
            disks.refuse_another(KEY, LARGE)
        disks.refuse_another(KEY, SMALL)
        assert disks.specs == {KEY: SMALL, OTHER: LARGE}


def test_promised_disk_is_wanted_without_a_caller() -> None:
    """One was told that it comes: until that is over, its name stands for it."""
    disks = wanted()
    assert disks.promise(KEY, SMALL)
    assert not disks.promise(KEY, SMALL)
    with disks.asked(KEY, SMALL):
        assert disks.is_promised(KEY)
    assert disks.specs == {KEY: SMALL}
    disks.end_promise(KEY)
    assert (disks.is_promised(KEY), disks.specs) == (False, {})


def test_promise_that_ends_leaves_the_disk_to_those_who_ask() -> None:
    """A failure that is written down, or a removal, ends it before the creation has ended."""
    disks = wanted()
    disks.promise(KEY, SMALL)
    with disks.asked(KEY, SMALL):
        disks.end_promise(KEY)
        disks.end_promise(KEY)
        assert disks.specs == {KEY: SMALL}
        assert disks.promise(KEY, SMALL)
    assert disks.specs == {KEY: SMALL}
    disks.end_promise(KEY)
    assert disks.specs == {}


def test_what_is_wanted_is_seen_as_it_changes() -> None:
    """Who holds on to it needs not ask again, and cannot change it."""
    disks = wanted()
    specs = disks.specs
    with disks.asked(KEY, SMALL):
        assert KEY in specs
    assert KEY not in specs
    assert not hasattr(specs, "pop")
