"""The options of all client commands: they may stand before the command, or behind it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from cacheagent.cli.plain import print_json, printable
from cacheagent.client import AsyncClient
from cacheagent.client.calls import DEFAULT_SOCKET, SOCKET_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOKEN_VARIABLE = "CACHEAGENT_TOKEN"  # noqa: S105 -- a name, no token
BEARER_VARIABLE = "CACHEAGENT_BEARER"

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True)
class Settings:
    """Where the daemon is, on whose behalf it is asked, and how to write its answer."""

    socket: str | None = None
    token: str | None = None
    bearer: str | None = None
    json: bool = False

    def ask(self, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run ``work`` with a client, and give what it gives."""
        token = self.token or os.environ.get(TOKEN_VARIABLE)
        bearer = self.bearer or os.environ.get(BEARER_VARIABLE)

        async def run() -> T:
            async with AsyncClient(self.socket, token=token, bearer=bearer) as client:
                return await work(client)

        return asyncio.run(run())

    def show(self, document: T, for_people: Callable[[T], None]) -> None:
        """Print an answer as JSON where that was asked for, else by ``for_people``."""
        (print_json if self.json else for_people)(document)

    def tell(self, sentence: str) -> None:
        """Say what was done, where the answer is empty; as JSON that is null."""
        self.show(None, lambda _: click.echo(printable(sentence)))


pass_settings = click.make_pass_decorator(Settings, ensure=True)
"""Hands the settings to a command as its first argument."""


def _note(ctx: click.Context, param: click.Parameter, value: object) -> None:
    # Behind the command and not given, an option leaves what stood before the command.
    if value is not None:
        setattr(ctx.ensure_object(Settings), str(param.name), value)


_OPTIONS = (
    click.option(
        "--socket",
        metavar="PATH|URL",
        help=f"Where the daemon is.  [default: ${SOCKET_VARIABLE} or {DEFAULT_SOCKET}]",
        expose_value=False,
        callback=_note,
    ),
    click.option(
        "--token",
        help=f"Ask on behalf of this Keystone token.  [default: ${TOKEN_VARIABLE}]",
        expose_value=False,
        callback=_note,
    ),
    click.option(
        "--bearer",
        help=f"The bearer token of a daemon over TCP.  [default: ${BEARER_VARIABLE}]",
        expose_value=False,
        callback=_note,
    ),
    click.option(
        "--json",
        is_flag=True,
        default=None,
        help="Print JSON.",
        expose_value=False,
        callback=_note,
    ),
)


def client_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options, which end up in the ``Settings`` of the context."""
    for option in _OPTIONS:
        command = option(command)
    return command
