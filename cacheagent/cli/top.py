"""The live view: what is coming, how full it is, what happened last."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cacheagent.cli.plain import doubt, printable
from cacheagent.cli.settings import Settings, client_options, pass_settings
from cacheagent.cli.sizes import shown
from cacheagent.cli.text import console
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    from cacheagent.client import AsyncClient
    from cacheagent.client.shapes import EventShape, ImageShape, StatusShape

    Draw = Callable[["StatusShape", list["ImageShape"], Sequence["EventShape"]], None]

EVENTS = 12
"""Events that are shown."""

_BAR = 30


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="End after so many looks.  [default: never; without a terminal and --json, after one]",
)
@client_options
@pass_settings
def top(settings: Settings, *, interval: float, count: int | None) -> None:
    """Watch the cache live, until Ctrl-C. With --json, one line for each look."""
    screen = console()
    if count is None and not settings.json and not screen.is_terminal:
        count = 1

    async def work(client: AsyncClient) -> None:
        if settings.json:
            await _watch(client, _print_line, interval, count)
        elif not screen.is_terminal:
            await _watch(client, lambda *seen: screen.print(_frame(*seen)), interval, count)
        else:
            with Live(console=screen, screen=True, auto_refresh=False) as live:
                await _watch(
                    client, lambda *seen: live.update(_frame(*seen), refresh=True), interval, count
                )

    with contextlib.suppress(KeyboardInterrupt):
        settings.ask(work)


async def _watch(client: AsyncClient, draw: Draw, interval: float, count: int | None) -> None:
    """Look again and again, and draw what is seen with the events of meanwhile."""
    events: deque[EventShape] = deque(maxlen=EVENTS)
    following = asyncio.ensure_future(_follow(client, events))
    try:
        while True:
            status, images = await asyncio.gather(client.status(), client.images())
            draw(status, [image for image in images if image["progress"]], events)
            if count is not None and (count := count - 1) == 0:
                return
            await asyncio.wait({following}, timeout=interval)
            if following.done():
                following.result()
    finally:
        following.cancel()
        await asyncio.wait({following})


async def _follow(client: AsyncClient, events: deque[EventShape]) -> None:
    async for event in client.events():
        # Progress is drawn as a bar.
        if event["event"] != "image.progress":
            events.append(event)


def _print_line(
    status: StatusShape, coming: list[ImageShape], events: Sequence[EventShape]
) -> None:
    click.echo(json.dumps({"status": status, "coming": coming, "events": list(events)}))


def _frame(
    status: StatusShape, coming: list[ImageShape], events: Sequence[EventShape]
) -> RenderableType:
    return Group(*_overview(status), Text(), _coming(coming), Text(), _events(events))


def _overview(status: StatusShape) -> Iterator[RenderableType]:
    space, counts = status["space"], status["counts"]
    state = "stopping" if status["stopping"] else "ready" if status["ready"] else "starting"
    glance = {True: "reachable", False: "out of reach", None: "not asked yet"}
    reachable = glance[status["glance"]["reachable"]]
    yield Text(f"cacheagent {printable(status['version'])}, {state}; glance {reachable}")
    table = Table.grid(padding=(0, 2))
    used, size = space["used_bytes"], space["size_bytes"]
    marks = [format_size(space[key]) for key in ("low_watermark_bytes", "high_watermark_bytes")]
    table.add_row(
        "file system",
        ProgressBar(total=max(size, 1), completed=used, width=_BAR),
        f"{format_size(used)} of {format_size(size)}, watermarks {' and '.join(marks)}",
    )
    cache, most = space["cache_bytes"], space["max_size_bytes"]
    bound = "" if most is None else f" of {format_size(most)}"
    table.add_row(
        "cache",
        ProgressBar(total=max(size, 1), completed=cache, width=_BAR),
        f"{format_size(cache)}{bound}, {format_size(space['reserved_bytes'])} reserved",
    )
    yield table
    for each in status["eviction"]["doubts"]:
        yield Text(printable(f"nothing is evicted: {doubt(each)}"), style="bold")
    yield Text(", ".join(f"{name} {count}" for name, count in counts.items()), style="dim")


def _coming(images: list[ImageShape]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("COMING", "STATE", "", "DONE", "RATE", "LEFT"):
        table.add_column(name)
    for image in images:
        if (progress := image["progress"]) is None:
            continue
        left = progress["eta_seconds"]
        table.add_row(
            Text(printable(image["name"])),
            image["state"],
            ProgressBar(
                total=max(progress["bytes_total"], 1), completed=progress["bytes_done"], width=_BAR
            ),
            f"{format_size(progress['bytes_done'])} of {shown(progress['bytes_total'] or None)}",
            f"{format_size(progress['bytes_per_second'])}/s",
            "-" if left is None else f"{left} s",
        )
    return table


def _events(events: Sequence[EventShape]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("AT", "EVENT", "WHAT"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for event in reversed(events):
        facts = {key: fact for key, fact in event["data"].items() if key != "at"}
        told = "  ".join(f"{key} {fact}" for key, fact in facts.items())
        at = str(event["data"].get("at", ""))[11:19]
        table.add_row(Text(printable(at)), Text(printable(event["event"])), Text(printable(told)))
    return table
