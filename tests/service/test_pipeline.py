"""One pass over the bytes of an image, beside others."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import BLOCK_SIZE, Block, Part
from cacheagent.service.pipeline import AT_ONCE, SHORT_PIECE, Pipeline
from cacheagent.service.proof import Proof
from cacheagent.sync import precedence
from cacheagent.sync.lending import Lending
from cacheagent.sync.precedence import Precedence
from tests.fakes import values
from tests.fakes.longwork import StandingClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = random.Random(4).randbytes(AT_ONCE * BLOCK_SIZE + 5)  # noqa: S311  the same at each run
IMAGE = replace(
    values.glance_image(1),
    size=len(DATA),
    os_hash_algo="sha512",
    os_hash_value=hashlib.sha512(DATA).hexdigest(),
)


class Stalled(Proof):
    """A proof that gets no further before it is let."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def feed(self, data: memoryview) -> asyncio.Future[None]:  # noqa: ARG002 -- as Proof has it
        """Wait in a thread."""
        return asyncio.get_running_loop().run_in_executor(None, self._wait)

    def _wait(self) -> None:
        self.go_on.wait(30)


class Failing(Proof):
    """A proof that breaks at its first block."""

    def __init__(self) -> None:
        pass

    def feed(self, data: memoryview) -> asyncio.Future[None]:
        """Fail."""
        broken = asyncio.get_running_loop().create_future()
        broken.set_exception(RuntimeError(f"no use for {len(data)} bytes"))
        return broken


async def pieces_of(data: bytes, pipeline: Pipeline) -> AsyncIterator[memoryview]:
    """Put data where there is room, as the image service does."""
    rest = memoryview(data)
    while rest:
        room = (await pipeline.room())[:1_000_003]
        length = min(len(room), len(rest))
        room[:length], rest = rest[:length], rest[length:]
        yield room[:length]


async def _some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def all_back(blocks: Lending[Block], number: int) -> None:
    """Borrow them all, and give them back."""
    taken = [await asyncio.wait_for(blocks.take(), 30) for _ in range(number)]
    assert [block.length for block in taken] == [0] * number
    for block in taken:
        blocks.give(block)


async def test_all_of_an_image_passes_through_one_buffer(tmp_path: Path) -> None:
    """Memory is no matter of what arrives but of how fast; what was done is told in bytes."""
    blocks, told = Lending(Block, 1), list[int]()
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        with Proof.open(IMAGE) as proof:
            pipeline = Pipeline(part, proof, blocks, Precedence(), told.append)
            await pipeline.run(pieces_of(DATA, pipeline))
            assert (await proof.finish()).digest == IMAGE.digest
    assert (tmp_path / "part").read_bytes() == DATA
    assert sum(told) == len(DATA)
    await all_back(blocks, 1)


async def test_a_pass_that_waits_leaves_buffers_to_the_others(tmp_path: Path) -> None:
    """One slow download takes its share and no more; when it is stopped it gives that back."""
    blocks, stalled = Lending(Block, AT_ONCE + 1), Stalled()
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        slow = Pipeline(part, stalled, blocks, Precedence(), lambda _length: None)
        running = asyncio.ensure_future(slow.run(pieces_of(DATA, slow)))
        async with Part.open(tmp_path / "other", tmp_path / "other.json", IMAGE) as other:
            with Proof.open(IMAGE) as proof:
                pipeline = Pipeline(other, proof, blocks, Precedence(), lambda _length: None)
                await pipeline.run(pieces_of(DATA, pipeline))
                assert (await proof.finish()).digest == IMAGE.digest
        assert not running.done()
        running.cancel()
        stalled.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    await all_back(blocks, AT_ONCE + 1)


async def test_while_requests_come_a_pass_receives_less_at_once(tmp_path: Path) -> None:
    """A request waits for a piece of each download, so that piece is short where there are any."""
    clock = StandingClock()
    one, blocks = Precedence(clock), Lending(Block, 1)
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        pipeline = Pipeline(part, Stalled(), blocks, one, lambda _length: None)
        assert len(await pipeline.room()) == BLOCK_SIZE
        one.begin().end()
        assert len(await pipeline.room()) == SHORT_PIECE
        clock.now += precedence.PATIENCE + precedence.LATELY
        assert len(await pipeline.room()) == BLOCK_SIZE


async def test_a_pass_that_is_stopped_keeps_its_buffers_while_a_thread_looks_at_them(
    tmp_path: Path,
) -> None:
    """What another download receives never gets under the eyes of the proof of this one."""
    blocks, stalled = Lending(Block, 1), Stalled()
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        pipeline = Pipeline(part, stalled, blocks, Precedence(), lambda _length: None)
        running = asyncio.ensure_future(pipeline.run(pieces_of(DATA, pipeline)))
        waiting = asyncio.ensure_future(blocks.take())
        await _some_turns()
        running.cancel()
        await _some_turns()
        assert not waiting.done()
        stalled.go_on.set()
        await asyncio.wait({running})
        assert (await asyncio.wait_for(waiting, 30)).length == 0


async def test_a_failure_in_a_thread_ends_the_pass(tmp_path: Path) -> None:
    """It is what the caller is told, nothing counts as done, and all buffers are back."""
    blocks, told = Lending(Block, 2), list[int]()
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        pipeline = Pipeline(part, Failing(), blocks, Precedence(), told.append)
        with pytest.raises(RuntimeError, match="no use"):
            await pipeline.run(pieces_of(DATA, pipeline))
    assert told == []
    await all_back(blocks, 2)


async def test_a_download_receives_nothing_while_a_request_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for it before the request is answered."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one, blocks = Precedence(StandingClock()), Lending(Block, 1)
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE) as part:
        with Proof.open(IMAGE) as proof:
            pipeline = Pipeline(part, proof, blocks, one, lambda _length: None)
            turn = one.begin()
            running = asyncio.ensure_future(pipeline.run(pieces_of(DATA, pipeline)))
            await _some_turns()
            await all_back(blocks, 1)
            turn.end()
            await running
            assert (await proof.finish()).digest == IMAGE.digest


@pytest.mark.parametrize(("more", "times"), [(True, BLOCK_SIZE // (512 << 10)), (False, 1)])
async def test_what_is_hashed_and_written_gives_way_again_and_again(
    tmp_path: Path, *, more: bool, times: int
) -> None:
    """While requests come, one waits for a piece of a block at most; else a block is one piece."""
    hashed, written, block = list[None](), list[None](), Block()
    block.rest()[:] = DATA[:BLOCK_SIZE]
    block.length = BLOCK_SIZE

    def asked(asks: list[None]) -> bool:
        asks.append(None)
        return more

    way, other = partial(asked, hashed), partial(asked, written)
    async with Part.open(tmp_path / "part", tmp_path / "record", IMAGE, way) as part:
        with Proof.open(IMAGE, give_way=other) as proof:
            await asyncio.gather(proof.feed(block.view()), part.write(block))
    assert min(len(hashed), len(written)) == times
