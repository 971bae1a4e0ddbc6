"""A compressed stream, undone in bounded memory: at most a few MiB at a time come out of it.

Every decoder is told how much it may give at once, and how much memory its format may ask for. So
a bomb is no more than a long stream, and whoever takes the blocks counts them.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from typing import TYPE_CHECKING, Final, Protocol

from cacheagent.errors import ImageUnacceptableError
from cacheagent.policy.containers import Compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

BLOCK_SIZE: Final = 4 << 20
"""Bytes of a block at most."""

INPUT: Final = 64 << 10
"""Bytes read at once; what a member leaves of them is copied, so they are few."""

MEMORY: Final = 256 << 20
"""What an xz stream may ask for; ``xz -9`` makes streams that want 65 MiB (xz(1))."""

WINDOW_LOG: Final = 27
"""Of zstd: 128 MiB, which is what its own tool takes without being told (RFC 8878, 3.1.1.1.2)."""

FREE_MEMBERS: Final = 1000
LEAST_OF_MEMBER: Final = 4096
"""Streams may be put one behind another (pigz, pzstd and bgzip do). To begin one costs more than
its bytes; so beyond the first ones there may be as many as give so many bytes each."""

_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS


class _Decoder(Protocol):
    """What the decoders of the standard library have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib, seen as its siblings are."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_GZIP_ONLY)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(out) < max_length
        return out


_DECODERS: Final[Mapping[Compression, Callable[[], _Decoder]]] = {
    Compression.GZIP: _Gzip,
    Compression.BZIP2: bz2.BZ2Decompressor,
    Compression.XZ: lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY),
    Compression.ZSTD: lambda: zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    ),
}
_ERRORS = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError, ValueError)


def blocks(read: Callable[[int], bytes], how: Compression) -> Iterator[bytes]:
    """Give what ``read`` gives, decompressed; a block may be empty, and is ``BLOCK_SIZE`` at most.

    Raises:
        ImageUnacceptableError: ``compression``: it is damaged, ends too early, goes on as
            something else, or wants more memory than it may have.

    """
    decoder, data, members, given = _DECODERS[how](), read(INPUT), 1, 0
    while True:
        block = _decompress(decoder, data, how)
        given += len(block)
        yield block
        if not decoder.eof:
            data = read(INPUT) if decoder.needs_input else b""
            if decoder.needs_input and not data:
                raise _refused(how, "ends too early")
            continue
        # Zeros behind a stream are padding (xz), or of no meaning (gzip).
        data = decoder.unused_data.lstrip(b"\0")
        while not data:
            if not (rest := read(INPUT)):
                return
            data = rest.lstrip(b"\0")
            yield b""
        members += 1
        if members > FREE_MEMBERS + given // LEAST_OF_MEMBER:
            raise _refused(how, "is in too many pieces for what it holds")
        decoder = _DECODERS[how]()


def _decompress(decoder: _Decoder, data: bytes, how: Compression) -> bytes:
    try:
        return decoder.decompress(data, BLOCK_SIZE)
    except _ERRORS as error:
        raise _refused(how, f"is damaged, or not the whole of the image: {error}") from error


def _refused(how: Compression, what: str) -> ImageUnacceptableError:
    return ImageUnacceptableError("compression", f"the {how} stream {what}")
