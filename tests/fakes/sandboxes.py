"""Ways to run programs, for tests."""

from __future__ import annotations

from pathlib import Path

from cacheagent.model import SandboxKind
from cacheagent.sandbox import Sandbox

NOWHERE = Path("/nowhere/sandbox.sock")

RLIMITS = Sandbox(kind=SandboxKind.RLIMITS, socket=NOWHERE)
BUBBLEWRAP = Sandbox(kind=SandboxKind.BUBBLEWRAP, socket=NOWHERE)
