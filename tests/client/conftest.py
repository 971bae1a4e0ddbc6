"""A daemon to speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.daemon import FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daemon() -> FakeDaemon:
    """Make a daemon that knows some images."""
    return FakeDaemon()


@pytest.fixture
def address(daemon: FakeDaemon, tmp_path: Path) -> Iterator[str]:
    """Serve it on a socket."""
    with daemon.running(tmp_path / "api.sock") as path:
        yield path
