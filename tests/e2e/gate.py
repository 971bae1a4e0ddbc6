"""A qemu-img that waits at a gate, so that a test can look at work which is half done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCRIPT = """\
#!/bin/sh
case "$*" in
    {pattern}) echo >"{begun}"; read -r _ <"{gate}" ;;
esac
exec "{qemu_img}" "$@"
"""


def making_of(size: int) -> str:
    """Give the pattern of the command that makes the template of overlays of ``size`` bytes."""
    return f'"create "*" {size}"'


class Gate:
    """Stops every run of ``qemu-img`` whose words the pattern fits; ``program`` is what runs it."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.program = folder / "gated-qemu-img"
        begun, gate = (self.program.with_suffix(suffix) for suffix in (".begun", ".gate"))
        script = _SCRIPT.format(
            pattern=pattern, begun=begun, gate=gate, qemu_img=shutil.which("qemu-img")
        )
        self.program.write_text(script)
        self.program.chmod(0o755)
        os.mkfifo(begun)
        os.mkfifo(gate)
        # fifo(7): opened for both, neither end waits for the other one.
        self._begun = os.open(begun, os.O_RDWR | os.O_NONBLOCK)
        self._gate = os.open(gate, os.O_RDWR | os.O_NONBLOCK)

    @property
    def settings(self) -> dict[str, object]:
        """Give ``[qemu]`` for a daemon that runs it; from a sandbox no gate could be reached."""
        return {"qemu_img": str(self.program), "sandbox": "rlimits"}

    async def reached(self) -> None:
        """Wait until a run stands before the gate."""
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(self._begun, came.set)
        try:
            await came.wait()
        finally:
            loop.remove_reader(self._begun)
        os.read(self._begun, 1)

    def open(self) -> None:
        """Let one run through, now or when it comes."""
        os.write(self._gate, b"\n")

    def close(self) -> None:
        """End; nothing may stand before the gate any more."""
        os.close(self._begun)
        os.close(self._gate)


@contextlib.contextmanager
def gated(folder: Path, pattern: str) -> Iterator[Gate]:
    """Give a qemu-img that waits to be let through where its words fit a pattern of the shell."""
    gate = Gate(folder, pattern)
    try:
        yield gate
    finally:
        gate.close()
