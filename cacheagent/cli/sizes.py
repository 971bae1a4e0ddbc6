"""Sizes as arguments, and in tables."""

from __future__ import annotations

import click

from cacheagent.units import format_size, parse_size


def size_argument(text: str) -> int:
    """Give the bytes that a person wrote. Raises: ``click.BadParameter``."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from error


def shown(size: int | None) -> str | None:
    """Give a size for people; None where it is not known."""
    return None if size is None else format_size(size)
