"""How commands end that do not succeed: a sentence on stderr, and an exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cacheagent.cli.plain import print_json, printable
from cacheagent.cli.refusal import lines
from cacheagent.cli.settings import Settings
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


class EndingGroup(click.Group):
    """A group of commands whose errors become what its caller reads, never a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and end the program where it fails."""
        settings = ctx.ensure_object(Settings)  # before the command would make its own
        try:
            return super().invoke(ctx)
        except CacheAgentError as error:
            for line in _sentences(error):
                click.echo(printable(line), err=True)
            if settings.json:
                print_json(_document(error))
            ctx.exit(_status(error))
        except click.ClickException as error:
            if settings.json:
                title = "usage" if isinstance(error, click.UsageError) else "refused"
                print_json(_no_answer(title, error.format_message()))
            raise


def _status(error: CacheAgentError) -> int:
    match error:
        case ConfigError():
            return USAGE
        case DaemonUnreachableError():
            return UNREACHABLE
        case _:
            return REFUSED


def _document(error: CacheAgentError) -> object:
    match error:
        case RequestFailedError():
            return error.problem
        case DaemonUnreachableError():
            return _no_answer("daemon out of reach", str(error))
        case _:
            return _no_answer("refused", str(error))


def _no_answer(title: str, detail: str) -> dict[str, str]:
    """Give what a program finds where no daemon has answered; shaped like a problem (RFC 9457)."""
    return {"type": "about:blank", "title": title, "detail": detail}


def _sentences(error: CacheAgentError) -> Iterator[str]:
    if isinstance(error, RequestFailedError):
        yield from lines(error)
    else:
        yield f"Error: {error}"
