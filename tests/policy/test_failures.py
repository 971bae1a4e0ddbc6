"""What is remembered of failures, and what is made of it."""

from __future__ import annotations

import pytest

from cacheagent.errors import (
    DigestMismatchError,
    GlanceRefusedError,
    GlanceUnavailableError,
    HostUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    ImageUnacceptableError,
    InsufficientSpaceError,
    ProblemError,
    ShuttingDownError,
    UnauthenticatedError,
)
from cacheagent.policy.failures import again, lasts

LASTING = (
    GlanceUnavailableError("away", retry_after=5),
    GlanceRefusedError("no", glance_status=409),
    ImageNotActiveError("an image", "queued"),
    ImageUnacceptableError("encrypted", "it is encrypted"),
    DigestMismatchError(algorithm="sha512", expected="ab", actual="cd"),
)
PASSING = (
    UnauthenticatedError("who"),
    ImageForbiddenError("an image", "not yours"),
    ImageNotFoundError("where"),
    InsufficientSpaceError(required_bytes=2, available_bytes=1),
    HostUnavailableError("killed"),
    ShuttingDownError("bye"),
)


@pytest.mark.parametrize("error", LASTING, ids=lambda error: error.word)
def test_what_the_next_one_would_find_too_is_remembered(error: ProblemError) -> None:
    """It is told with the same word and members, and without what the first one had in memory."""
    try:
        raise error from ValueError("a cause")
    except ProblemError as raised:
        told = again(raised, 3.2)
    assert lasts(error)
    assert (told.word, str(told), told.members()) == (error.word, str(error), error.members())
    assert told is not error
    assert told.__cause__ is None
    assert told.__traceback__ is None


@pytest.mark.parametrize("error", PASSING, ids=lambda error: error.word)
def test_what_is_about_one_caller_or_this_host_is_not(error: ProblemError) -> None:
    """Another caller may be allowed; room may be there a moment later."""
    assert not lasts(error)


@pytest.mark.parametrize(("said", "left", "told"), [(5, 2.5, 5), (1, 2.5, 3), (120, 4.0, 120)])
def test_who_is_to_come_again_is_told_when(said: int, left: float, told: int) -> None:
    """Neither before the failure is forgotten, nor before Glance said."""
    error = again(GlanceUnavailableError("away", retry_after=said), left)
    assert isinstance(error, GlanceUnavailableError)
    assert error.retry_after == told
