"""Each way of shutting a program in, with the real bubblewrap and a real socket of systemd's."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cacheagent.model import SandboxKind
from cacheagent.sandbox import Sandbox
from tests.needs import require_bubblewrap, require_programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNNER = "from cacheagent.sandbox.runner import main; main()"


@pytest.fixture
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a socket behind which each connection starts the program of the unit."""
    require_bubblewrap()
    require_programs("systemd-socket-activate")
    address = tmp_path_factory.mktemp("unit") / "sandbox.sock"
    words = ["systemd-socket-activate", "--accept", "--inetd", "-l", str(address)]
    with subprocess.Popen(
        [*words, sys.executable, "-c", RUNNER], stderr=subprocess.PIPE, text=True
    ) as manager:
        assert manager.stderr is not None
        assert "Listening" in manager.stderr.readline()
        yield address
        manager.terminate()
        manager.communicate()


@pytest.fixture(params=[SandboxKind.BUBBLEWRAP, SandboxKind.SYSTEMD])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> Sandbox:
    """Give a way in which a program is shut in."""
    require_bubblewrap()
    direct = request.param is SandboxKind.BUBBLEWRAP
    socket = tmp_path / "none" if direct else request.getfixturevalue("unit")
    return Sandbox(kind=request.param, socket=socket)
