"""Work that is not left half done because its caller goes away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class _Uninterrupted(asyncio.Task[T]):
    """A task that nobody cancels; ``heard`` is called when somebody tries.

    A caller that waits for it and is cancelled gets its ``CancelledError`` when this task has
    ended, since it says no (``asyncio.Task.cancel``).
    """

    def __init__(self, work: Coroutine[object, object, T], heard: Callable[[], object]) -> None:
        super().__init__(work)
        self._heard = heard

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- the signature is asyncio's
        self._heard()
        return False


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
    if isinstance(work, asyncio.Future):
        work = _outcome(work)
    return await _Uninterrupted(work, on_cancel)


async def _outcome(work: asyncio.Future[T]) -> T:
    """Wait for what can be cancelled by others, and give what comes of it."""
    await asyncio.wait({work})
    return work.result()
