"""What the bytes of an image really are, found while they pass by.

The formats are known to the inspectors of oslo.utils; the rules that they lack are in
``policy.headers``, and the judgement is ``policy.admission``'s.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from oslo_utils.imageutils import format_inspector

from cacheagent.policy.admission import Failure, Found
from cacheagent.policy.headers import HEAD_LENGTH, TAIL_LENGTH, examine, formats_of_start, wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSPECTION_VERSION: Final = 3
"""Counts the changes of the rules: a base inspected by fewer of them is to be looked at again."""

# The library finds structures only where it sees their beginning in a later piece than what
# points at them. A VHDX keeps its header in the first MiB and its metadata beyond it ([MS-VHDX]
# 2.1), so pieces of one MiB, cut at its multiples, are right and make the result independent of
# how the bytes arrived.
_PIECE = HEAD_LENGTH

# Formats whose disk is not simply the file; of the others the length is the virtual size.
_SIZED = frozenset({"qcow2", "vmdk", "vdi", "vhd", "vhdx"})


def formats_of_ends(path: Path) -> frozenset[str]:
    """Tell which formats the first and the last bytes of a file speak of, none for plain data.

    For threads: it reads. Raises: ``OSError``.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_LENGTH)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(length - TAIL_LENGTH, 0))
        return examine(head, file.read(TAIL_LENGTH), length).formats


class Inspection:
    """The inspection of one image, fed its bytes from the first to the last.

    Pure computing without I/O, for a worker thread; not to be fed by two threads at once. Holds
    at most some MiB, however long the image is; behind the first MiB, of plain data and of qcow2
    with clusters of 64 KiB, no more than some hundred KiB, where the pieces end at a MiB.
    """

    def __init__(self) -> None:
        self._inspectors = {
            name: make()
            for name, make in format_inspector.ALL_FORMATS.items()
            if name != "raw"  # it matches everything
        }
        self._gone_wrong: dict[str, str] = {}
        self._pending = bytearray()
        self._head = b""
        self._tail = b""
        self._length = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, in a piece of any length; the buffer is free again afterwards."""
        with memoryview(data) as given, given.cast("B") as view:
            position = 0
            while position < len(view):
                step = min(len(view) - position, _PIECE - len(self._pending))
                with view[position : position + step] as part:
                    self._take(part)
                position += step

    def finish(self) -> Found:
        """Say what the bytes were; nothing may be fed afterwards. Never raises for the bytes."""
        self._eat(bytes(self._pending))
        self._pending.clear()
        seen = examine(self._head, self._tail, self._length)
        formats, failures, sizes = set(seen.formats), list(seen.failures), [seen.virtual_size]
        for name, inspector in self._inspectors.items():
            inspector.finish()
            if name in seen.formats or _matches(inspector):
                formats.add(name)
                failures += self._examine(name, inspector)
                if name in _SIZED:
                    sizes.append(_virtual_size(inspector))
            _empty(inspector)
        if not formats & _SIZED:
            sizes.append(self._length)
        elif max(sizes) <= 0:
            failures.append(Failure(min(formats & _SIZED), "virtual-size-unknown", "no size"))
        return Found(
            formats=frozenset(formats) or frozenset({"raw"}),
            length=self._length,
            virtual_size=max(sizes),
            failures=tuple(failures),
        )

    def _take(self, part: memoryview) -> None:
        if len(part) == _PIECE:
            self._eat(part)
            return
        self._pending += part
        if len(self._pending) == _PIECE:
            self._eat(bytes(self._pending))
            self._pending.clear()

    def _eat(self, piece: bytes | memoryview) -> None:
        is_first = not self._length
        if is_first:
            self._head = _head(piece)
        self._length += len(piece)
        self._tail = (self._tail + bytes(piece[-TAIL_LENGTH:]))[-TAIL_LENGTH:]
        for name, inspector in list(self._inspectors.items()):
            if name in self._gone_wrong:
                continue
            try:
                inspector.eat_chunk(cast("bytes", piece))  # it slices and adds only
            except Exception as error:  # noqa: BLE001 - to raise is how an inspector says "not mine"
                self._gone_wrong[name] = str(error)
            if is_first:
                self._let_go(name, inspector)

    def _let_go(self, name: str, inspector: format_inspector.FileInspector) -> None:
        """Feed one no more that has all it asked for, and knows that it is not its format.

        Some keep a MiB of what they saw.
        """
        is_done = name in self._gone_wrong or inspector.complete
        if is_done and name not in formats_of_start(self._head) and not _matches(inspector):
            _empty(self._inspectors.pop(name))

    def _examine(self, name: str, inspector: format_inspector.FileInspector) -> Iterator[Failure]:
        if name in self._gone_wrong:
            yield Failure(name, "inspector-failed", self._gone_wrong[name])
            return
        if name == "vmdk" and not self._head.startswith(b"KDMV"):
            # Text, however it begins: where QEMU is told the format, it reads it all the same.
            yield Failure(name, "text-descriptor", "it only names other files")
        if not inspector.complete:
            yield Failure(name, "incomplete", "the file ends too early")
            return
        try:
            inspector.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            for rule, violation in error.failures.items():
                yield Failure(name, rule.replace("_", "-"), str(violation))
        except Exception as error:  # noqa: BLE001 - whatever breaks a check, the image caused it
            yield Failure(name, "inspector-failed", repr(error))


def _head(piece: bytes | memoryview) -> bytes:
    """Give what is to be kept of the first bytes; a MiB of them is there no longer than this."""
    head = bytes(piece)
    return head[: wanted(head)]


def _empty(inspector: format_inspector.FileInspector) -> None:
    """Take from an inspector what it has seen: its checks refer to it, so that it stays a while."""
    for region in inspector.context_info:
        inspector.delete_region(region)


def _matches(inspector: format_inspector.FileInspector) -> bool:
    # The VMDK inspector trips over an attribute that it never set where the content begins like
    # text and goes on otherwise. `headers` looks for text descriptors itself.
    with suppress(AttributeError):
        return bool(inspector.format_match)
    return False


def _virtual_size(inspector: format_inspector.FileInspector) -> int:
    try:
        return int(inspector.virtual_size)
    except Exception:  # noqa: BLE001 - a size that cannot be read is an unknown size
        return 0
