"""A QEMU that has a file open, without a guest."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened_by_qemu(*arguments: str) -> Iterator[None]:
    """Let qemu-io have a file open, as its arguments say, for as long as the body runs."""
    require_programs("qemu-io")
    with subprocess.Popen(
        ["qemu-io", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("length\n")
        process.stdin.flush()
        # It answers when it has opened the file.
        assert "MiB" in process.stdout.readline()
        yield
        process.stdin.close()
        assert process.wait() == 0
