"""Each problem reads as its word, its sentence, and what the sentence leaves unsaid."""

from __future__ import annotations

import pytest

from cacheagent.cli.refusal import lines
from cacheagent.errors import RequestFailedError


@pytest.mark.parametrize(
    ("status", "problem", "told"),
    [
        (
            507,
            {
                "type": "urn:cacheagent:insufficient-space",
                "detail": "62914560 bytes are needed, 100 are available",
                "required_bytes": 62914560,
                "available_bytes": 100,
            },
            ["insufficient-space (507): 62914560 bytes are needed, 100 are available"],
        ),
        (
            400,
            {
                "type": "urn:cacheagent:invalid-request",
                "detail": "size_bytes: must be greater than 0",
                "errors": [{"field": "size_bytes", "problem": "must be greater than 0"}],
            },
            ["invalid-request (400): size_bytes: must be greater than 0"],
        ),
        (
            500,
            {
                "type": "urn:cacheagent:internal",
                "detail": "the log of the daemon tells the cause under 0a1b",
                "error_id": "0a1b",
            },
            ["internal error (500): the log of the daemon tells the cause under 0a1b"],
        ),
        (
            409,
            {
                "type": "urn:cacheagent:disk-conflict",
                "detail": "disk root is another one",
                "existing": {"format": "raw", "mode": "full", "image_id": None},
            },
            [
                "disk-conflict (409): disk root is another one",
                "  existing: format raw, mode full",
            ],
        ),
        (
            409,
            {"type": "urn:cacheagent:disk-conflict", "detail": "it is not yours", "existing": {}},
            ["disk-conflict (409): it is not yours"],
        ),
        (
            422,
            {
                "type": "urn:cacheagent:image-unacceptable",
                "detail": "it has a backing file",
                "reason": "backing-file",
            },
            [
                "image-unacceptable (422): it has a backing file",
                "  reason: backing-file",
            ],
        ),
        (
            422,
            {
                "type": "urn:cacheagent:image-unacceptable",
                "detail": "the image is empty",
                "reason": "empty",
            },
            ["image-unacceptable (422): the image is empty", "  reason: empty"],
        ),
        (
            401,
            {"type": "urn:cacheagent:unauthenticated", "detail": "X-Auth-Token is needed here"},
            [
                "unauthenticated (401): X-Auth-Token is needed here",
                "  Keystone's: --token, $CACHEAGENT_TOKEN; daemon's: --bearer, $CACHEAGENT_BEARER",
            ],
        ),
        (502, {}, ["problem (502): no detail"]),
    ],
)
def test_a_refusal_is_said_once(status: int, problem: dict[str, object], told: list[str]) -> None:
    """The word comes first, and no figure or field stands there twice."""
    detail = str(problem.get("detail", "no detail"))
    found = list(lines(RequestFailedError(detail, status=status, problem=problem)))
    assert found == [f"Error: {told[0]}", *told[1:]]
