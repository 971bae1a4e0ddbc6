"""A daemon to speak to, and a way to run commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cacheagent.cli import main
from tests.fakes.daemon import FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def daemon() -> FakeDaemon:
    """Make a daemon that knows some images."""
    return FakeDaemon()


@pytest.fixture
def address(daemon: FakeDaemon, tmp_path: Path) -> Iterator[str]:
    """Serve it on a socket."""
    with daemon.running(tmp_path / "api.sock") as path:
        yield path


@pytest.fixture
def run(address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an environment that names the daemon."""
    monkeypatch.setenv("CACHEAGENT_SOCKET", address)
    return lambda *args: CliRunner().invoke(main, args, catch_exceptions=False)
