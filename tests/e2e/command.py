"""The real command line, run as its users run it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECONDS = 60


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended: its exit status, and what it wrote."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:  # noqa: ANN401 -- whatever the command printed
        """The JSON that it printed."""
        return json.loads(self.stdout)


async def cacheagent(*words: str | Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run ``cacheagent`` with these words, without a terminal, to its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cacheagent", *words),
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            stdout, stderr = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return Finished(process.returncode or 0, stdout.decode(), stderr.decode())
