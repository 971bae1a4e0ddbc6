"""Errors become problems; what nobody expected stays in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cacheagent import errors
from cacheagent.api import problemdocs
from cacheagent.api.problems import reply_for
from cacheagent.errors import MethodNotAllowedError, PathNotFoundError
from tests.api.answers import validate
from tests.fakes.services import IMAGE, INSTANCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.errors import ProblemError
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

DISK = f"/v1/instances/{INSTANCE}/disks/root"
USER = {"kind": "disk", "instance_id": INSTANCE, "name": "root"}

EXPECTED: list[tuple[ProblemError, int, str, dict[str, Any]]] = [
    (
        errors.InvalidRequestError([("size_bytes", "is odd")]),
        400,
        "invalid-request",
        {"errors": [{"field": "size_bytes", "problem": "is odd"}]},
    ),
    (errors.UnauthenticatedError("no"), 401, "unauthenticated", {}),
    (errors.ImageForbiddenError(IMAGE, "no"), 403, "image-forbidden", {"image_id": IMAGE}),
    (errors.ImageNotFoundError("no"), 404, "image-not-found", {}),
    (
        errors.ImageNotActiveError(IMAGE, "queued"),
        409,
        "image-not-active",
        {"image_status": "queued"},
    ),
    (
        errors.DiskConflictError("no", {"size": 512}),
        409,
        "disk-conflict",
        {"existing": {"size": 512}},
    ),
    (
        errors.ImageUnacceptableError("backing-file", "no"),
        422,
        "image-unacceptable",
        {"reason": "backing-file"},
    ),
    (
        errors.DiskTooSmallError(required_bytes=2, requested_bytes=1),
        422,
        "disk-too-small",
        {"required_bytes": 2, "requested_bytes": 1},
    ),
    (
        errors.DigestMismatchError(algorithm="sha512", expected="a", actual="b"),
        502,
        "digest-mismatch",
        {"algorithm": "sha512", "expected": "a", "actual": "b"},
    ),
    (
        errors.GlanceRefusedError("no", glance_status=413),
        502,
        "glance-refused",
        {"glance_status": 413},
    ),
    (errors.GlanceUnavailableError("no"), 503, "glance-unavailable", {}),
    (errors.HostUnavailableError("no"), 503, "host-unavailable", {}),
    (errors.ShuttingDownError("no"), 503, "shutting-down", {}),
    (errors.TooManyRequestsError("no"), 429, "too-many-requests", {}),
    (
        errors.InsufficientSpaceError(required_bytes=2, available_bytes=1),
        507,
        "insufficient-space",
        {"required_bytes": 2, "available_bytes": 1},
    ),
]


@pytest.mark.parametrize(
    ("error", "status", "word", "members"), EXPECTED, ids=[case[2] for case in EXPECTED]
)
async def test_an_error_becomes_its_problem(
    ask: Ask,
    services: FakeServices,
    error: ProblemError,
    status: int,
    word: str,
    members: dict[str, Any],
) -> None:
    """Word, status, title, detail and members come as the contract has them."""
    services.script.problem = error
    answer = await ask("PUT", DISK, json={"image_id": IMAGE})
    assert (answer.status, answer.content_type) == (status, "application/problem+json")
    assert await answer.json(content_type=None) == {
        "type": f"urn:cacheagent:{word}",
        "title": error.title,
        "status": status,
        "detail": str(error),
        **members,
    }


@pytest.mark.parametrize(
    ("method", "path", "error", "status", "members"),
    [
        ("GET", DISK, errors.DiskNotFoundError("no"), 404, {}),
        ("GET", f"/v1/instances/{INSTANCE}", errors.InstanceNotFoundError("no"), 404, {}),
        (
            "DELETE",
            f"/v1/images/{IMAGE}",
            errors.BaseInUseError("no", [USER]),
            409,
            {"users": [USER]},
        ),
    ],
)
async def test_the_problems_of_other_requests(
    ask: Ask,
    services: FakeServices,
    method: str,
    path: str,
    error: ProblemError,
    status: int,
    members: dict[str, Any],
) -> None:
    """What creating a disk cannot end in is a problem where it can happen."""
    services.script.problem = error
    answer = await ask(method, path)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (status, f"urn:cacheagent:{error.word}")
    assert problem | members == problem


@pytest.mark.parametrize("kind", [errors.GlanceUnavailableError, errors.ShuttingDownError])
async def test_what_passes_says_when_to_try_again(
    ask: Ask, services: FakeServices, kind: type[errors.RetryLaterError]
) -> None:
    """Retry-After holds the seconds that the error names."""
    services.script.problem = kind("later", retry_after=17)
    answer = await ask("PUT", DISK, json={"image_id": IMAGE})
    assert answer.headers["Retry-After"] == "17"


@pytest.mark.parametrize("error", [RuntimeError("/etc/secret"), errors.QemuImgError("/etc/secret")])
async def test_an_unexpected_error_is_told_to_the_log_alone(
    ask: Ask, services: FakeServices, error: Exception
) -> None:
    """The caller gets an id, and the log has text and trace under the same id."""
    services.script.problem = error
    with capture_logs() as logs:
        answer = await ask("GET", DISK)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (500, "urn:cacheagent:internal")
    assert "secret" not in await answer.text()
    logged = next(line for line in logs if line["event"] == "unexpected error")
    assert (logged["error_id"], logged["exc_info"]) == (problem["error_id"], error)


@pytest.mark.parametrize("path", ["/nowhere", "/v1/", "/v1/images/", "/v1/event"])
async def test_an_unknown_path_is_a_problem(ask: Ask, path: str) -> None:
    """A path that is none says so in the same form as everything else."""
    answer = await ask("GET", path)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (404, "urn:cacheagent:not-found")


async def test_an_unknown_method_is_a_problem(ask: Ask) -> None:
    """A method that the path does not know is answered with those that it knows."""
    answer = await ask("POST", DISK)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (405, "urn:cacheagent:method-not-allowed")
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PUT"


def _classes(root: type[ProblemError]) -> Iterator[type[ProblemError]]:
    for child in root.__subclasses__():
        yield child
        yield from _classes(child)


def test_every_problem_is_described() -> None:
    """No problem with a word of its own is missing from the OpenAPI document's models."""
    described = {error.word for error in problemdocs.MODELS}
    assert {error.word for error in _classes(errors.ProblemError)} <= described


@pytest.mark.parametrize("error", [PathNotFoundError("no"), MethodNotAllowedError(["GET"])])
def test_the_problems_of_the_router_fit_their_models(error: ProblemError) -> None:
    """Paths that the document cannot have are answered by a described problem all the same."""
    schema = problemdocs.MODELS[type(error)].model_json_schema()
    body = reply_for(error).body
    assert isinstance(body, bytes)
    problem = problemdocs.MODELS[type(error)].model_validate_json(body)
    validate(schema, problem.model_dump())
