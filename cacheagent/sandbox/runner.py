"""The program of the unit ``cacheagent-sandbox@``: runs one program in bubblewrap, and ends.

The daemon's own unit may not make namespaces: whoever broke into it would have the kernel's
largest surface before him. This unit may, and has no network. systemd starts one for each
connection to its socket, which only the daemon may open. The connection is the leash: when the
daemon closes it, or goes, the program is killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys

from cacheagent.process import ENVIRONMENT, prefix
from cacheagent.sandbox import bubblewrap
from cacheagent.sandbox.order import LONGEST_ORDER, Order, decode

_STREAMS = 2


def main() -> None:
    """Serve the connection that systemd passed as standard input (``Accept=yes``)."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        sys.exit("cacheagent-sandbox is started by cacheagent-sandbox.socket, and not by hand")
    with socket.socket(fileno=os.dup(0)) as connection:
        serve(connection)


def serve(connection: socket.socket) -> None:
    """Take an order, run it to its end or to that of the connection, and reply its status.

    Raises: ValueError where the daemon sends no order.
    """
    data, streams, _, _ = socket.recv_fds(connection, LONGEST_ORDER, _STREAMS)
    try:
        if len(streams) != _STREAMS:
            raise ValueError("an order comes with two descriptors")
        status = _run(decode(data), streams, connection)
    finally:
        # They end before the reply: the daemon reads what they carry to its end.
        for stream in streams:
            os.close(stream)
    connection.send(str(status).encode())


def _run(order: Order, streams: list[int], connection: socket.socket) -> int:
    stdout, stderr = streams
    told, tell = os.pipe()
    words = bubblewrap.words(order.files, order.argv[0], tell=tell)
    with subprocess.Popen(  # noqa: S603 -- the words are a list, and the program is shut in
        [*prefix(order.limits), *words, *order.argv],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,
        pass_fds=(told, tell),
    ) as process:
        os.close(tell)
        _wait(process.pid, connection)
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    bubblewrap.wait_until_gone(told)
    return status


def _wait(pid: int, connection: socket.socket) -> None:
    """Wait for the end of the process, or of the connection."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        for descriptor in (pidfd, connection.fileno()):
            poll.register(descriptor, select.POLLIN)
        poll.poll()
    finally:
        os.close(pidfd)
