"""What every command writes, the one that serves too: text without a table, JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

_TO_THE_MINUTE = len("2026-03-01T10:00")


def printable(text: str) -> str:
    """Replace what a terminal would obey: names come from outside."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def doubt(user: Mapping[str, object]) -> str:
    """Say what keeps everything from eviction; a tenant is not told which file it is about."""
    words = (user.get("path"), user.get("detail"))
    return " ".join(str(word) for word in words if word) or "somebody may use a base"


def print_json(document: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2))


def short_time(time: str | None) -> str | None:
    """Give an RFC 3339 time in UTC to the minute, as a list has room for it."""
    return None if time is None else time[:_TO_THE_MINUTE].replace("T", " ")
