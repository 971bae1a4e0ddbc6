"""How commands end that do not succeed: a sentence on stderr, and an exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cacheagent.cli.text import printable
from cacheagent.errors import (
    CacheAgentError,
    ConfigError,
    DaemonUnreachableError,
    RequestFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = 1
USAGE = 2
UNREACHABLE = 3

_TOLD = {"type", "title", "status", "detail"}


class EndingGroup(click.Group):
    """A group of commands whose errors become what its caller reads, never a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and end the program where it fails."""
        try:
            return super().invoke(ctx)
        except CacheAgentError as error:
            for line in _sentences(error):
                click.echo(printable(line), err=True)
            ctx.exit(_status(error))


def _status(error: CacheAgentError) -> int:
    match error:
        case ConfigError():
            return USAGE
        case DaemonUnreachableError():
            return UNREACHABLE
        case _:
            return REFUSED


def _sentences(error: CacheAgentError) -> Iterator[str]:
    yield f"Error: {error}"
    if isinstance(error, RequestFailedError):
        for key, value in error.problem.items():
            if key not in _TOLD:
                yield f"  {key}: {value if isinstance(value, str) else json.dumps(value)}"
