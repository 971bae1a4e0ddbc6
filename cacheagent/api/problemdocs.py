"""The problems as models, for the OpenAPI document: one for each word, with its members."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, create_model

from cacheagent.api import wire
from cacheagent.api.problems import TYPE_PREFIX
from cacheagent.errors import (
    BaseInUseError,
    DigestMismatchError,
    DiskConflictError,
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
    OperatorOnlyError,
    PathNotFoundError,
    ProblemError,
    ShuttingDownError,
    TooManyRequestsError,
    UnauthenticatedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Problem(BaseModel):
    """RFC 9457 problem details; ``type`` says which problem it is, and which members it has."""

    type: str
    title: str
    status: int
    detail: str


class FieldProblem(BaseModel):
    """What is wrong with one field of a request, its path or its headers."""

    field: str
    problem: str


_MEMBERS: Mapping[type[ProblemError], Mapping[str, Any]] = {
    ProblemError: {"error_id": str},
    InvalidRequestError: {"errors": list[FieldProblem]},
    UnauthenticatedError: {},
    PathNotFoundError: {},
    MethodNotAllowedError: {},
    ImageForbiddenError: {"image_id": str},
    OperatorOnlyError: {},
    ImageNotFoundError: {},
    DiskNotFoundError: {},
    InstanceNotFoundError: {},
    ImageNotActiveError: {"image_status": str},
    DiskConflictError: {"existing": dict[str, Any]},
    BaseInUseError: {"users": list[wire.User]},
    ImageUnacceptableError: {"reason": str},
    DiskTooSmallError: {"required_bytes": wire.Size, "requested_bytes": wire.Size},
    DigestMismatchError: {"algorithm": str, "expected": str, "actual": str},
    GlanceRefusedError: {"glance_status": int},
    GlanceUnavailableError: {},
    HostUnavailableError: {},
    ShuttingDownError: {},
    TooManyRequestsError: {},
    InsufficientSpaceError: {"required_bytes": wire.Size, "available_bytes": wire.Size},
}
"""Every problem that can be answered, with the members that it has beside those of all."""


def _model(error: type[ProblemError]) -> type[Problem]:
    kinds = {
        "type": Literal[f"{TYPE_PREFIX}{error.word}"],
        "status": Literal[error.status],
        **_MEMBERS[error],
    }
    # The type of a field that is known only as the program runs: for mypy it is anything.
    fields: dict[str, Any] = {field: (kind, ...) for field, kind in kinds.items()}
    name, told = re.sub("Error$", "", error.__name__), error.__doc__
    if error is ProblemError:
        name, told = "Internal", "What nobody expected; the log tells the cause under ``error_id``."
    return create_model(f"{name}Problem", __base__=Problem, __doc__=told, **fields)


MODELS: Mapping[type[ProblemError], type[Problem]] = {error: _model(error) for error in _MEMBERS}
"""The model of every problem that can be answered."""
