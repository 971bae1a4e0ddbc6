"""Commands that serve, and the one that checks what would be served with."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cacheagent.config import load_config
from cacheagent.configtypes import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATH = click.Path(path_type=Path)


def _listen(text: str) -> HostPort:
    try:
        return HostPort.parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from error


@contextlib.contextmanager
def _without(library: str) -> Iterator[None]:
    """Have a library that is not loaded yet be absent for what is imported inside.

    (Python's import system, "The module cache": None there.) structlog loads rich, which takes
    4 MiB, to show exceptions with the values of their frames. The log never shows those.
    """
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]


@click.command()
@click.option("--config", "path", type=_PATH, required=True, help="The configuration, in TOML.")
def serve(path: Path) -> None:
    """Run the daemon until SIGTERM; SIGHUP reloads the configuration."""
    # A client command need not load what only the daemon needs, nor the daemon what they need.
    with _without("rich"):
        from cacheagent import daemon  # noqa: PLC0415 -- see above

    asyncio.run(daemon.run(load_config(path), path))


@click.command()
@click.argument("path", metavar="FILE", type=_PATH)
def check_config(path: Path) -> None:
    """Tell whether the daemon would start with this configuration; exit status 2 if not."""
    from cacheagent.check import check, doubts  # noqa: PLC0415 -- as in `serve`

    config = load_config(path)
    asyncio.run(check(config))
    for key in config.without_effect():
        click.echo(f"{key} has no effect in this version")
    for doubt in doubts(config):
        click.echo(doubt)
    click.echo("OK")


@click.command()
@click.argument("directory", metavar="DIR", type=_PATH)
@click.option(
    "--listen",
    type=_listen,
    metavar="HOST:PORT",
    default="127.0.0.1:9292",
    show_default=True,
    help="Where to serve; port 0 = any free one.",
)
def imageserver(directory: Path, listen: HostPort) -> None:
    """Serve the image files of DIR as a small Glance, without log-in."""
    from cacheagent import imageserver  # noqa: PLC0415 -- as in `serve`

    async def serve() -> None:
        serving = asyncio.ensure_future(
            imageserver.serve(
                directory,
                listen.host,
                listen.port,
                ready=lambda url: click.echo(f"serving at {url}"),
            )
        )
        # Ctrl-C is how its user ends it. What a shell starts in the background ignores SIGINT, and
        # Python then raises no KeyboardInterrupt; a handler of the loop hears it all the same.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    asyncio.run(serve())
