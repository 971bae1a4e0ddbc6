"""Compressed streams: all of what is in them, in pieces, and nothing but that."""

from __future__ import annotations

import io
import itertools
import os
import zlib
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.unpack import BLOCK_SIZE, streams
from cacheagent.errors import ImageUnacceptableError
from cacheagent.policy.containers import Compression
from tests.fakes.containers import COMPRESS

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, OTHER = os.urandom(300_000), bytes(9 << 20) + b"end"
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0skip"

each = pytest.mark.parametrize("how", Compression)


def undone(data: bytes, how: Compression) -> bytes:
    """Decompress, and see that no block was larger than it may be."""
    blocks = list(streams.blocks(io.BytesIO(data).read, how))
    assert max(map(len, blocks)) <= BLOCK_SIZE
    return b"".join(blocks)


@each
@pytest.mark.parametrize("content", [b"", b"x", ONE, OTHER])
def test_a_stream(how: Compression, content: bytes) -> None:
    """What was compressed comes out again, in pieces of bounded length."""
    assert undone(COMPRESS[how](content), how) == content


@each
def test_streams_one_behind_another(how: Compression) -> None:
    """Tools that compress in parallel write several streams; they are one disk."""
    whole = b"".join(COMPRESS[how](part) for part in (ONE, b"", OTHER, ONE))
    assert undone(whole, how) == ONE + OTHER + ONE


@each
def test_zeros_behind_a_stream(how: Compression) -> None:
    """Padding up to a block means nothing."""
    assert undone(COMPRESS[how](ONE) + bytes(100_000), how) == ONE


@each
def test_padding_without_end_is_read_in_steps(how: Compression) -> None:
    """Who waits for the next block waits for little reading, however many zeros are behind it."""
    source = io.BytesIO(COMPRESS[how](b"x") + bytes(100 * streams.INPUT))
    ends = [0, *(source.tell() for _ in streams.blocks(source.read, how)), source.tell()]
    steps = [end - start for start, end in itertools.pairwise(ends)]
    assert max(steps) <= 2 * streams.INPUT


@each
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: data + data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + b"12345678" + data[len(data) // 2 + 8 :],
    ],
    ids=["cut by a byte", "cut in the middle", "a byte more", "half of another", "changed"],
)
def test_what_is_no_whole_stream(how: Compression, change: Callable[[bytes], bytes]) -> None:
    """A part of a disk is never taken for the disk."""
    with pytest.raises(ImageUnacceptableError) as refused:
        undone(change(COMPRESS[how](ONE)), how)
    assert refused.value.reason == "compression"


def test_frames_that_are_to_be_skipped() -> None:
    """What pzstd puts in front of each of its frames holds nothing, and is no end."""
    assert undone((SKIPPABLE + COMPRESS["zstd"](ONE)) * 3, Compression.ZSTD) == ONE * 3


def test_memory_that_a_stream_asks_for() -> None:
    """A stream that wants a dictionary of a GiB does not get it."""
    stream = bytearray(COMPRESS["xz"](ONE))
    # The one filter of the block: its id, the length of its properties, and the dictionary's size
    # (the .xz file format, 5.3.1); behind it the sum of the block's header.
    start = stream.index(b"\x21\x01", 12)
    stream[start + 2] = 36
    end = 12 + (stream[12] + 1) * 4
    stream[end - 4 : end] = zlib.crc32(stream[12 : end - 4]).to_bytes(4, "little")
    with pytest.raises(ImageUnacceptableError, match=r"[Mm]emory"):
        undone(bytes(stream), Compression.XZ)
