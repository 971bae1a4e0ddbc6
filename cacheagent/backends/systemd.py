"""systemd: readiness, status and watchdog by sd_notify(3), sockets by sd_listen_fds(3).

The environment is handed in and read once. Outside of systemd everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FIRST_PASSED = 3
"""SD_LISTEN_FDS_START: passed descriptors begin after stdin, stdout and stderr."""


class Notifier:
    """What the service manager is told: one datagram each, never waited for.

    A datagram that the manager does not take is lost: a daemon does not stop for that. The
    methods do not block and may be called on the event loop.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_interval = _watchdog_interval(environ)

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of ``watchdog``: half of the time limit; None = no watchdog."""
        return self._watchdog_interval

    def ready(self) -> None:
        """Say that the start, or a reload, is complete."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """Say that a reload has begun; ``ready`` ends it. The time tells it from an older one."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """Say that the daemon is alive."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto(message.encode(), self._address)


def passed_sockets(
    environ: Mapping[str, str], *, first: int = _FIRST_PASSED
) -> dict[str, list[socket.socket]]:
    """Take over the sockets that systemd opened for us, by FileDescriptorName=.

    A socket without a name of its own is under ``unknown``. Ours alone from then on: they are
    not inherited further. Call it once: the caller owns and closes them.
    """
    sockets: dict[str, list[socket.socket]] = {}
    for name, descriptor in _passed(environ, first):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 -- it takes no keyword
        sockets.setdefault(name, []).append(socket.socket(fileno=descriptor))
    return sockets


def _passed(environ: Mapping[str, str], first: int) -> Iterator[tuple[str, int]]:
    count = _number(environ.get("LISTEN_FDS"))
    # Descriptors meant for our parent are not ours: the variables are inherited, they are not.
    if count is None or _number(environ.get("LISTEN_PID")) != os.getpid():
        return
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for index in range(count):
        name = names[index] if index < len(names) else ""
        if stat.S_ISSOCK(os.fstat(first + index).st_mode):
            yield name or "unknown", first + index


def _address(value: str) -> str | None:
    """Give the address for sendto: a path, or an abstract name, whose first byte is written @."""
    if value.startswith("@"):
        return "\0" + value[1:]
    return value if value.startswith("/") else None


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    limit = _number(environ.get("WATCHDOG_USEC"))
    if not limit or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return limit / 2e6


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
