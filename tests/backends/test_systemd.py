"""What systemd hears, and what it hands over."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.systemd import Notifier, passed_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST = 300
"""Where the tests put descriptors that systemd would put at 3."""


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as the service manager does, by a path or by an abstract name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0cacheagent-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        yield manager


def _environ(manager: socket.socket) -> dict[str, str]:
    name = manager.getsockname()
    return {"NOTIFY_SOCKET": "@" + name[1:].decode() if isinstance(name, bytes) else name}


def test_each_message_is_one_datagram(manager: socket.socket) -> None:
    """The service manager reads the words of sd_notify(3)."""
    notifier = Notifier(_environ(manager))
    notifier.ready()
    notifier.status("two\nlines")
    notifier.watchdog()
    notifier.stopping()
    assert [manager.recv(4096) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=two lines",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_reload_bears_the_time(manager: socket.socket) -> None:
    """Type=notify-reload wants the monotonic clock, in microseconds."""
    Notifier(_environ(manager)).reloading()
    first, second = manager.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


def test_without_systemd_nothing_is_sent() -> None:
    """The same daemon runs in a terminal, or where the manager has gone."""
    for environ in ({}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nonexistent"}):
        Notifier(environ).ready()
    assert Notifier({}).watchdog_interval is None


async def test_a_message_does_not_wait_for_its_reader(tmp_path: Path) -> None:
    """A manager that does not read costs messages and no time: the loop goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(5000):
            notifier.watchdog()
        assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_in_half_the_time(
    environ: dict[str, str], interval: float | None
) -> None:
    """A beat that is late once does not end the daemon; another process's watchdog is not ours."""
    assert Notifier(environ).watchdog_interval == interval


def _pass(index: int, descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST + index)


def test_passed_sockets_come_by_name(tmp_path: Path) -> None:
    """Two sockets of one name and one without: each can be served, none is inherited."""
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(str(tmp_path / "api.sock"))
        assert [_pass(i, s.fileno()) for i, s in enumerate((unix, tcp, tcp))] == [300, 301, 302]
        environ = {"LISTEN_FDS": "3", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "api:api"}
        sockets = passed_sockets(environ, first=FIRST)
        assert [s.family for s in sockets["api"]] == [socket.AF_UNIX, socket.AF_INET]
        assert [s.fileno() for s in sockets["unknown"]] == [302]
        for passed in (*sockets["api"], *sockets["unknown"]):
            assert not os.get_inheritable(passed.fileno())
            passed.close()


def test_a_descriptor_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """What else systemd stores for a service is not served."""
    with (tmp_path / "file").open("w") as file:
        descriptor = _pass(0, file.fileno())
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    assert passed_sockets(environ, first=descriptor) == {}
    os.close(descriptor)


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x"}],
)
def test_sockets_of_another_process_are_not_taken(environ: dict[str, str]) -> None:
    """Variables that were meant for our parent change nothing."""
    assert passed_sockets(environ, first=FIRST) == {}
