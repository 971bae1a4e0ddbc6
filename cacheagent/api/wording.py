"""What is wrong with a body, in our words: each follows the name of a field."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from cacheagent.mistakes import expectation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_MANY = 8
"""With more mistakes than these nobody meant another field, and to guess takes time."""


def problems(error: ValidationError, fields: Iterable[str]) -> list[tuple[str, str]]:
    """Give pairs of field and problem, without the values that were sent.

    ``fields`` are those that the request knows: one is proposed for an unknown field like it.
    """
    known = tuple(fields) if error.error_count() <= _MANY else ()
    return [
        (".".join(map(str, one["loc"])) or "body", _problem(one, known))
        for one in error.errors(include_url=False, include_input=False)
    ]


def _problem(one: ErrorDetails, known: Iterable[str]) -> str:
    kind, context = one["type"], one.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return "unknown field" + _proposal(str(one["loc"][-1]), known)
        case "json_invalid":
            place = re.search(r"line \d+ column \d+", str(context["error"]))
            return f"is not valid JSON{f', at {place[0]}' if place else ''}"
        case "model_type":
            return "must be a JSON object"
        case _:
            return expectation(one)


def _proposal(field: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(field, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""
