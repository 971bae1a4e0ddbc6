"""What the service manager hears of a configuration that is read again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.systemd import Notifier
from cacheagent.config import Config
from cacheagent.errors import ConfigError
from cacheagent.live import Live
from cacheagent.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as the service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0)
        yield manager


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "the configuration was reloaded; nothing waits for a restart"),
        ("images.max_size = 1", "the configuration was reloaded; nothing waits for a restart"),
        (
            "qemu.convert_threads = 1",
            "the configuration was reloaded; qemu.convert_threads waits for a restart",
        ),
        ("images.max_sise = 1", "the configuration is kept as it was: "),
    ],
)
async def test_a_reload_is_told_from_its_beginning_to_its_end(
    tmp_path: Path, manager: socket.socket, text: str, status: str
) -> None:
    """``systemctl reload`` and ``status`` show that it went on, and what came of it."""
    path = tmp_path / "config.toml"
    path.write_text("")
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.getsockname())})
    live = Live(Config(), path, Metrics(), notifier)
    path.write_text(text)
    await live.reload()
    began, told, ended = (manager.recv(4096).decode() for _ in range(3))
    assert began.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert told.startswith(f"STATUS={status}")
    assert ended == "READY=1"


async def test_files_that_keys_name_are_read_before_anything_changes(tmp_path: Path) -> None:
    """A certificate that cannot be read keeps the whole configuration as it was."""
    path = tmp_path / "config.toml"
    path.write_text("[eviction]\nmax_idle = 3600")
    live = Live(Config(), path, Metrics(), Notifier({}))
    broken = [True]

    async def read() -> None:
        if broken.pop():
            raise ConfigError("api.tls_cert: no such file")

    live.read_with(read)
    await live.reload()
    assert live() == Config()
    assert live.metrics.registry.get_sample_value("cacheagent_config_reload_success") == 0
    broken.append(False)
    await live.reload()
    assert live().eviction.max_idle == 3600
    assert broken == []


@pytest.mark.parametrize(
    ("text", "times"),
    [("eviction.max_idle = 3600", 1), ("", 0), ("qemu.convert_threads = 1", 0), ("x = 1", 0)],
)
async def test_who_wants_to_know_hears_of_what_has_changed(
    tmp_path: Path, text: str, times: int
) -> None:
    """A bound that is lowered is looked at now, and not when the old interval ends."""
    path = tmp_path / "config.toml"
    path.write_text("")
    live = Live(Config(), path, Metrics(), Notifier({}))
    heard: list[int] = []
    live.tell(lambda: heard.append(1))
    path.write_text(text)
    await live.reload()
    assert len(heard) == times
