"""What pydantic found wrong with a value, in our words: each sentence follows the name of a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

_SENTENCES: Final[Mapping[str, str]] = {
    "bool_type": "must be true or false",
    "dict_type": "must be a section with keys of its own",
    "enum": "must be {expected}",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_type": "must be a section with keys of its own",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "is longer than {max_length} characters",
    "string_type": "must be a text",
}

_LONGEST = 64
"""Characters of a value that are repeated, at the most."""


def expectation(mistake: ErrorDetails) -> str:
    """Say what is expected; the value that was found is not told."""
    words = _SENTENCES.get(mistake["type"])
    if words is None:
        return mistake["msg"].removeprefix("Value error, ")
    return words.format(**mistake.get("ctx", {})).replace("'", "")


def sentence(mistake: ErrorDetails) -> str:
    """Say what is expected, and what was found where that is short: for an operator's own files."""
    words = expectation(mistake)
    found = mistake["input"]
    if mistake["type"] not in _SENTENCES or not isinstance(found, str | bool | int | float):
        return words
    value = f'"{found}"' if isinstance(found, str) else str(found).lower()
    return f"{words}, and not {value if len(value) <= _LONGEST else f'{value[:_LONGEST]}…'}"
