"""What the daemon tells the unit that runs programs for it, and what it hears back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cacheagent.process import Limits
from cacheagent.sandbox.bubblewrap import Files

LONGEST_ORDER = 64 << 10
"""Bytes of an order; it is sent in one piece, with the descriptors of stdout and stderr."""

LONGEST_REPLY = 64
"""Bytes of a reply: the exit status of bubblewrap, in digits. Without one nothing was run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A program to run in bubblewrap."""

    argv: tuple[str, ...]
    limits: Limits
    files: Files

    def encode(self) -> bytes:
        """Write it down."""
        read, write = (list(map(str, paths)) for paths in (self.files.read, self.files.write))
        order = {"argv": self.argv, "limits": asdict(self.limits), "read": read, "write": write}
        return json.dumps(order).encode()


def decode(data: bytes) -> Order:
    """Read what ``encode`` has written. Raises: ValueError where it is none of that."""
    try:
        found: dict[str, Any] = json.loads(data)
        order = Order(
            argv=tuple(map(str, found["argv"])),
            limits=Limits(**found["limits"]),
            files=Files(read=_paths(found["read"]), write=_paths(found["write"])),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("this is no order") from error
    if not order.argv:
        raise ValueError("this names no program")
    return order


def _paths(names: list[str]) -> tuple[Path, ...]:
    return tuple(map(Path, names))
