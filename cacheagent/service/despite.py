"""Deeds that take something back, and must not fail for want of a little room."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cacheagent.backends.store import spare
from cacheagent.errors import DiskFullError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cacheagent.backends.store import Store

T = TypeVar("T")


async def despite_full(store: Store, deed: Callable[[], Awaitable[T]]) -> T:
    """Do what needs a little room; on a file system that is full, with what is kept for this.

    A row needs some, and so may the folder that a file is renamed into. A pass of the pruner
    keeps the spare bytes anew.

    Raises:
        DiskFullError: others were faster to take them.

    """
    try:
        return await deed()
    except DiskFullError:
        await store.run(spare.spend, store.layout.spare)
        return await deed()
