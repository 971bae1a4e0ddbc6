"""What a person reads of a problem: its word, its sentence, and what that leaves unsaid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.errors import RequestFailedError

_TYPE_PREFIX = "urn:cacheagent:"
_SAID = {"type", "title", "status", "detail", "error_id"}
_TOKENS = "Keystone's: --token, $CACHEAGENT_TOKEN; daemon's: --bearer, $CACHEAGENT_BEARER"


def lines(error: RequestFailedError) -> Iterator[str]:
    """Give the lines: the problem, then each member that its sentence does not hold already."""
    problem = error.problem
    yield f"Error: {_word(problem)} ({error.status}): {error}"
    for key, value in problem.items():
        if key not in _SAID:
            yield from _member(key, value, str(error))
    if any(user.get("kind") == "pin" for user in _objects(problem.get("users"))):
        yield "  `cacheagent image unpin IMAGE` takes the pin away"
    if problem.get("type") == f"{_TYPE_PREFIX}unauthenticated":
        yield f"  {_TOKENS}"


def _word(problem: Mapping[str, object]) -> str:
    word = str(problem.get("type", "")).removeprefix(_TYPE_PREFIX)
    return "internal error" if word == "internal" else word or "problem"


def _member(key: str, value: object, sentence: str) -> Iterator[str]:
    match key:
        case "errors":
            told = [f"{one.get('field')}: {one.get('problem')}" for one in _objects(value)]
            yield from (f"  {line}" for line in told if line not in sentence)
        case "users":
            yield from (f"  used by: {_values(user)}" for user in _objects(value))
        case "existing":
            yield from (f"  {key}: {_pairs(one)}" for one in _objects([value]) if one)
        case "reason":  # the word to look up, also where the sentence happens to have it
            yield f"  {key}: {value}"
        case "retry_after":
            yield f"  try again in {value} s"
        case _:
            if not re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", sentence):
                yield f"  {key}: {value}"


def _objects(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, Sequence):
        yield from (one for one in value if isinstance(one, Mapping))


def _values(one: Mapping[str, object]) -> str:
    return " ".join(str(value) for value in one.values() if value is not None)


def _pairs(one: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.items() if value is not None)
