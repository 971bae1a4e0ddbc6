"""One pass over the bytes of an image: received, hashed, inspected and written side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable

    from cacheagent.backends.store import Block, Part
    from cacheagent.service.proof import Proof
    from cacheagent.sync.lending import Lending
    from cacheagent.sync.precedence import Precedence

_Outcome = tuple[BaseException | None, BaseException | None]

AT_ONCE = 3
"""Buffers that one pass holds at most: one that fills, the others on their way through threads."""

SHORT_PIECE = 128 << 10
"""Bytes that are received at once while requests come: each waits for one piece of each pass."""


class Pipeline:
    """Passes blocks on to the proof and to the part, each of which works in its own thread.

    The blocks are borrowed from those that all passes share, and given back when both are done.
    """

    def __init__(
        self,
        part: Part,
        proof: Proof,
        blocks: Lending[Block],
        precedence: Precedence,
        on_block: Callable[[int], None],
    ) -> None:
        self._part = part
        self._proof = proof
        self._blocks = blocks
        self._precedence = precedence
        self._on_block = on_block
        self._filling: Block | None = None
        self._under_way: deque[asyncio.Future[_Outcome]] = deque()

    async def room(self) -> memoryview:
        """Give the memory that the next piece is to begin in, once no request goes first."""
        others = await self._precedence.give_way()
        if self._filling is None:
            while len(self._under_way) >= AT_ONCE - 1:
                await self._oldest()
            self._filling = await self._blocks.take()
        rest = self._filling.rest()
        return rest[:SHORT_PIECE] if others else rest

    async def run(self, pieces: AsyncIterable[memoryview]) -> None:
        """Take in all pieces, received into ``room``; on return all were written and proved.

        Raises:
            InsufficientSpaceError: the file system is full.
            Exception: what ``pieces`` raises.

        """
        try:
            async for piece in pieces:
                self._take(len(piece))
            if self._filling is not None and self._filling.length:
                self._pass_on(self._filling)
            while self._under_way:
                await self._oldest()
        finally:
            await self._end()

    def _take(self, length: int) -> None:
        if self._filling is None:
            raise RuntimeError("a piece came without room")
        self._filling.length += length
        if self._filling.is_full:
            self._pass_on(self._filling)

    def _pass_on(self, block: Block) -> None:
        self._filling = None
        done = asyncio.gather(
            self._proof.feed(block.view()), self._part.write(block), return_exceptions=True
        )
        done.add_done_callback(partial(self._passed, block))
        self._under_way.append(done)

    def _passed(self, block: Block, done: asyncio.Future[_Outcome]) -> None:
        if all(error is None for error in done.result()):
            self._on_block(block.length)
        self._give_back(block)

    def _give_back(self, block: Block) -> None:
        block.length = 0
        self._blocks.give(block)

    async def _oldest(self) -> None:
        done = self._under_way[0]
        # Unlike awaiting it, this leaves it alone where the pass is cancelled.
        await asyncio.wait({done})
        del self._under_way[0]
        for error in done.result():
            if error is not None:
                raise error

    async def _end(self) -> None:
        """Give all blocks back: another pass may have them when no thread looks at them."""
        if self._filling is not None:
            self._give_back(self._filling)
            self._filling = None
        if self._under_way:
            await uninterrupted(asyncio.wait(self._under_way))
