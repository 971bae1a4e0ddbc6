"""Images taken apart: the disk inside of an archive or a compressed stream becomes a file."""

from __future__ import annotations

from cacheagent.backends.unpack.streams import BLOCK_SIZE
from cacheagent.backends.unpack.unpacking import Unpacking, read_head

__all__ = ["BLOCK_SIZE", "Unpacking", "read_head"]
