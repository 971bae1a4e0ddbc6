"""The tree of errors is as it is drawn, and each problem says what the contract says."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from cacheagent import errors
from cacheagent.errors import (
    BaseInUseError,
    BearerError,
    CacheAgentError,
    DigestMismatchError,
    DiskConflictError,
    DiskFullError,
    DiskNotFoundError,
    DiskTooSmallError,
    GlanceRefusedError,
    GlanceUnavailableError,
    HostUnavailableError,
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    ImageUnacceptableError,
    InstanceNotFoundError,
    InsufficientSpaceError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OperatorOnlyError,
    PathNotFoundError,
    ProblemError,
    ProgramKilledError,
    ProgramMissingError,
    RequestFailedError,
    RetryLaterError,
    ShuttingDownError,
    TooManyRequestsError,
    UnauthenticatedError,
)

CONTRACT: list[tuple[ProblemError, str, int, dict[str, object]]] = [
    (
        InvalidRequestError([("size_bytes", "is negative")]),
        "invalid-request",
        400,
        {"errors": [{"field": "size_bytes", "problem": "is negative"}]},
    ),
    (UnauthenticatedError("no token"), "unauthenticated", 401, {}),
    (OperatorOnlyError("not with a token"), "operator-only", 403, {}),
    (ImageForbiddenError("i", "not yours"), "image-forbidden", 403, {"image_id": "i"}),
    (ImageNotFoundError("none"), "image-not-found", 404, {}),
    (DiskNotFoundError("none"), "disk-not-found", 404, {}),
    (PathNotFoundError("none"), "not-found", 404, {}),
    (MethodNotAllowedError(["GET"]), "method-not-allowed", 405, {}),
    (InstanceNotFoundError("none"), "instance-not-found", 404, {}),
    (
        ImageNotActiveError("i", "deactivated"),
        "image-not-active",
        409,
        {"image_status": "deactivated"},
    ),
    (
        DiskConflictError("another", {"format": "raw"}),
        "disk-conflict",
        409,
        {"existing": {"format": "raw"}},
    ),
    (
        BaseInUseError("used", [{"kind": "pin"}]),
        "base-in-use",
        409,
        {"users": [{"kind": "pin"}]},
    ),
    (
        ImageUnacceptableError("backing-file", "has one"),
        "image-unacceptable",
        422,
        {"reason": "backing-file"},
    ),
    (
        DiskTooSmallError(required_bytes=2, requested_bytes=1),
        "disk-too-small",
        422,
        {"required_bytes": 2, "requested_bytes": 1},
    ),
    (
        DigestMismatchError(algorithm="sha512", expected="a", actual="b"),
        "digest-mismatch",
        502,
        {"algorithm": "sha512", "expected": "a", "actual": "b"},
    ),
    (GlanceRefusedError("no", glance_status=418), "glance-refused", 502, {"glance_status": 418}),
    (GlanceUnavailableError("away"), "glance-unavailable", 503, {}),
    (HostUnavailableError("killed"), "host-unavailable", 503, {}),
    (ShuttingDownError("bye"), "shutting-down", 503, {}),
    (TooManyRequestsError("slowly"), "too-many-requests", 429, {}),
    (
        InsufficientSpaceError(required_bytes=2, available_bytes=1),
        "insufficient-space",
        507,
        {"required_bytes": 2, "available_bytes": 1},
    ),
]

ABSTRACT = {ProblemError, NotFoundError, RetryLaterError}
"""Classes that are there to be caught, and never raised."""


def _drawn() -> list[tuple[int, str]]:
    """Give the names in the docstring's drawing, with their depth."""
    lines = re.findall(r"^    ([│├└─ ]*)(\w+Error)\b", inspect.getdoc(errors) or "", re.MULTILINE)
    return [(len(branch) // 4, name) for branch, name in lines]


def _real(root: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    """Give the names of the classes in the order in which they are defined, with their depth."""
    # A backend may have kinds of its own of these, which never leave it.
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    below = [each for child in children for each in _real(child, depth + 1)]
    return [(depth, root.__name__), *below]


def _problems(root: type[ProblemError] = ProblemError) -> set[type[ProblemError]]:
    """Give all problems of the module."""
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return {root}.union(*(_problems(child) for child in children))


def test_the_tree_is_as_it_is_drawn() -> None:
    """The drawing shows every class under the one that it belongs to, and none that is not."""
    assert sorted(_drawn_with_parents(_drawn())) == sorted(_drawn_with_parents(_real_tree()))


def _real_tree() -> list[tuple[int, str]]:
    return _real(CacheAgentError)


def _drawn_with_parents(lines: list[tuple[int, str]]) -> list[tuple[str, ...]]:
    """Turn names with their depth into paths from the root."""
    path: list[str] = []
    paths = []
    for depth, name in lines:
        path[depth:] = [name]
        paths.append(tuple(path))
    return paths


def test_all_errors_stand_in_one_module() -> None:
    """Whoever catches the root catches every error of the project, and finds it in one place."""
    defined = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, Exception)
    }
    assert {name for _, name in _real_tree()} == defined


@pytest.mark.parametrize(
    ("problem", "word", "status", "members"), CONTRACT, ids=[row[1] for row in CONTRACT]
)
def test_a_problem_is_that_of_the_contract(
    problem: ProblemError, word: str, status: int, members: dict[str, object]
) -> None:
    """Word, status and members are those that the contract promises; the members are JSON."""
    assert (problem.word, problem.status) == (word, status)
    assert problem.members() == members
    assert json.loads(json.dumps(problem.members())) == members
    assert str(problem)
    assert problem.title[0].isupper()


def test_every_problem_is_in_the_contract() -> None:
    """No class of a problem has a word that the contract does not know, or one of another."""
    # The one over TCP is the same word to the caller, with another way to authenticate; a disk that
    # was found full is the same as one that was reckoned full; of a program that did not come to
    # its end a caller needs to know no more.
    same = {BearerError, DiskFullError, ProgramKilledError, ProgramMissingError}
    assert {type(row[0]) for row in CONTRACT} == _problems() - ABSTRACT - same
    words = [row[1] for row in CONTRACT]
    assert len(set(words)) == len(words)
    assert ProblemError.word == "internal"
    assert ProblemError.status == 500


def test_a_state_that_passes_says_when_to_come_again() -> None:
    """Problems that end by themselves carry the seconds after which a retry makes sense."""
    assert GlanceUnavailableError("away", retry_after=30).retry_after == 30
    assert ShuttingDownError("bye").retry_after == 5


def test_a_client_gets_status_and_problem() -> None:
    """The library's error holds what the daemon answered."""
    error = RequestFailedError("no", status=409, problem={"type": "urn:cacheagent:x"})
    assert error.status == 409
    assert error.problem == {"type": "urn:cacheagent:x"}
    assert not isinstance(error, ProblemError)
