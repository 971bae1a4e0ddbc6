"""The command that shows the agent at a glance."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from cacheagent.cli.plain import doubt, short_time
from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.text import print_facts
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.client.shapes import (
        GlanceShape,
        PressureShape,
        QuarantineShape,
        StatusShape,
    )

_COUNTS: Final = {"quarantined": "damaged bases"}
"""What is told by another name than in JSON: ``quarantine`` is about refused images as well."""


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
    yield "sandbox", status["sandbox"]
    used, size = format_size(space["used_bytes"]), format_size(space["size_bytes"])
    yield "file system", f"{used} of {size} used, {format_size(space['free_bytes'])} free"
    most = space["max_size_bytes"]
    bound = "" if most is None else f" of {format_size(most)}"
    yield "cache", f"{format_size(space['cache_bytes'])}{bound}"
    yield "reserved", format_size(space["reserved_bytes"])
    high = format_size(space["high_watermark_bytes"])
    low = format_size(space["low_watermark_bytes"])
    yield "kept free", format_size(space["min_free_bytes"])
    yield "watermarks", f"evicts above {high}, down to {low}"
    yield from _pressure(status["eviction"])
    yield from _quarantine(status["quarantine"])
    for name, count in status["counts"].items():
        yield _COUNTS.get(name, name), count
    for name, loop in status["loops"].items():
        yield f"{name} ran", loop["last_run_at"] or "never"


def _pressure(eviction: PressureShape) -> Iterator[tuple[str, object]]:
    """Tell what the last pass could not do; nothing where there was nothing."""
    for each in eviction["doubts"]:
        yield "nothing is evicted", doubt(each)
    if eviction["unmet_bytes"]:
        yield "could not be freed", format_size(eviction["unmet_bytes"])


def _quarantine(quarantine: QuarantineShape) -> Iterator[tuple[str, object]]:
    """Tell what was refused, the newest first."""
    held, most = quarantine["bytes"], quarantine["max_size_bytes"]
    count = f", {quarantine['count']} refused" if quarantine["count"] else ""
    yield "quarantine", f"{format_size(held)} of {format_size(most)}{count}"
    for each in quarantine["files"]:
        told = f"{each['reason']}: {each['detail']}" if each["detail"] else each["reason"]
        yield "refused", f"{each['image_id']} {short_time(each['quarantined_at'])}, {told}"


def _glance(glance: GlanceShape) -> str:
    if glance["reachable"] is None:
        return "not asked yet"
    word = "reachable" if glance["reachable"] else "out of reach"
    return f"{word}, asked {glance['checked_at']}"
