"""Work that is not left half done because its caller goes away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


async def uninterrupted(
    work: asyncio.Future[T] | Coroutine[object, object, T],
    *,
    on_cancel: Callable[[], object] = lambda: None,
) -> T:
    """Run ``work`` to its end, and give what it returns or raises.

    A cancellation of the caller waits until the work has ended, and is raised then in place of
    the result: nothing goes on behind the back of whoever cleans up. ``on_cancel`` is called
    meanwhile, for work that can be told to end soon.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain of an error unheard
        raise cancelled
    return task.result()
