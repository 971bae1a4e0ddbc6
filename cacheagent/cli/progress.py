"""A bar on anything long: an image that comes while somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cacheagent.errors import RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from cacheagent.client import AsyncClient
    from cacheagent.client.shapes import ImageShape

T = TypeVar("T")

_QUICK = 0.3
"""Seconds in which a hit is answered: no bar flashes up for it."""

_POLL = 0.25


async def with_bar(client: AsyncClient, image_id: str | None, work: Coroutine[None, None, T]) -> T:
    """Give what ``work`` gives; while it waits for the image, draw a bar on a terminal's stderr.

    Whoever stops the waiting stops ``work`` with it.
    """
    waiting = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({waiting}, timeout=_QUICK)
        if not done and image_id is not None:
            await _draw(client, image_id, waiting)
        return await waiting
    finally:
        waiting.cancel()


async def with_spinner(what: str, work: Awaitable[T]) -> T:
    """Give what ``work`` gives; on a terminal's stderr, tell meanwhile that it goes on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return await work
    with console.status(what):
        return await work


async def _draw(client: AsyncClient, image_id: str, waiting: asyncio.Future[T]) -> None:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("waiting", total=None)
        while not waiting.done():
            # Before the daemon has heard of the image from Glance there is nothing to show.
            with contextlib.suppress(RequestFailedError):
                image = await client.image(image_id)
                _show(bar, task, image)
            await asyncio.wait({waiting}, timeout=_POLL)


def _show(bar: Progress, task: TaskID, image: ImageShape) -> None:
    bar.update(task, description=image["state"])
    if (progress := image["progress"]) is not None:
        bar.update(task, completed=progress["bytes_done"], total=progress["bytes_total"])
