"""One pass over the bytes of an image: received, hashed, inspected and written side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from cacheagent.backends.store import Block

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable

    from cacheagent.backends.store import Part
    from cacheagent.service.proof import Proof

BLOCKS = 4
"""Buffers of one pass: one that fills, and as many again on their way through the threads."""


class Pipeline:
    """Passes blocks on to the proof and to the part, each of which works in its own thread.

    The memory is the same for every image: a block is filled again when both are done with it.
    """

    def __init__(self, part: Part, proof: Proof, on_block: Callable[[int], None]) -> None:
        self._part = part
        self._proof = proof
        self._on_block = on_block
        self._spare = [Block() for _ in range(BLOCKS)]
        self._under_way: deque[tuple[Block, asyncio.Future[tuple[None, None]]]] = deque()

    async def run(self, pieces: AsyncIterable[bytes]) -> None:
        """Take all pieces in; when this returns, all were written and proved.

        Raises:
            InsufficientSpaceError: the file system is full.
            Exception: what ``pieces`` raises.

        """
        try:
            block = await self._empty_block()
            async for piece in pieces:
                rest = memoryview(piece)
                while rest := block.take(rest):
                    self._pass_on(block)
                    block = await self._empty_block()
            if block.length:
                self._pass_on(block)
            while self._under_way:
                await self._oldest()
        finally:
            for _, done in self._under_way:
                done.cancel()

    def _pass_on(self, block: Block) -> None:
        proved = self._proof.feed(block.view())
        written = self._part.write(block)
        done = asyncio.gather(proved, written)
        done.add_done_callback(partial(self._passed, block.length))
        self._under_way.append((block, done))

    def _passed(self, length: int, done: asyncio.Future[tuple[None, None]]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._on_block(length)

    async def _empty_block(self) -> Block:
        return self._spare.pop() if self._spare else await self._oldest()

    async def _oldest(self) -> Block:
        block, done = self._under_way[0]
        await done
        self._under_way.popleft()
        block.length = 0
        return block
