"""The command that shows the agent at a glance."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.text import print_facts
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.client.shapes import GlanceShape, StatusShape


@click.command()
@client_options
@pass_settings
def status(settings: Settings) -> None:
    """Show the agent at a glance."""
    settings.show(
        settings.ask(lambda client: client.status()),
        lambda status: print_facts(_facts(status)),
    )


def _facts(status: StatusShape) -> Iterator[tuple[str, object]]:
    space = status["space"]
    yield "version", status["version"]
    yield "up for", timedelta(seconds=int(status["uptime_seconds"]))
    yield "ready", "stopping" if status["stopping"] else "yes" if status["ready"] else "no"
    yield "glance", _glance(status["glance"])
    used, size = format_size(space["used_bytes"]), format_size(space["size_bytes"])
    yield "file system", f"{used} of {size} used, {format_size(space['free_bytes'])} free"
    yield "cache", format_size(space["cache_bytes"])
    yield "reserved", format_size(space["reserved_bytes"])
    high = format_size(space["high_watermark_bytes"])
    low = format_size(space["low_watermark_bytes"])
    yield "kept free", format_size(space["min_free_bytes"])
    yield "watermarks", f"evicts above {high}, down to {low}"
    for name, count in status["counts"].items():
        yield name, count
    for name, loop in status["loops"].items():
        yield f"{name} ran", loop["last_run_at"] or "never"


def _glance(glance: GlanceShape) -> str:
    if glance["reachable"] is None:
        return "not asked yet"
    word = "reachable" if glance["reachable"] else "out of reach"
    return f"{word}, asked {glance['checked_at']}"
