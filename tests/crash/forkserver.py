"""Daemons by the dozen: a process that has loaded everything forks one for each order.

It reads an order in a line of JSON, answers with the process that it has forked, and then, when
that and whatever it has left behind are gone, with how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from cacheagent import daemon
from cacheagent.api import openapi
from cacheagent.api.routes import ROUTES
from cacheagent.backends.systemd import Notifier
from cacheagent.config import load_config, parse_config
from cacheagent.service.verify import Verify
from tests.crash.failpoints import Failpoints, Intrusion, Order

PR_SET_CHILD_SUBREAPER = 36
"""Whoever loses its parent below this process becomes its child (prctl(2))."""


def main() -> None:
    """Serve orders until there are no more."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # It is the same for all, and half of what a start costs.
    described = openapi.document(ROUTES)
    openapi.document = lambda routes: described  # noqa: ARG005 -- they are always the same
    # Bases are read again when a test asks for it, not whenever the scrubber comes to it.
    Verify.due = _nothing  # type: ignore[method-assign, assignment]
    _warm_up()
    # What is there now is shared with all that are forked.
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_daemon(order)
        _answer(pid)
        _answer(_wait_for_all(pid))


async def _nothing(_verify: Verify, _without: object) -> None:
    pass


def _warm_up() -> None:
    """Let a daemon start and stop here, so that those that are forked find everything loaded."""
    ready = Notifier.ready

    def stop(_notifier: Notifier) -> None:
        signal.raise_signal(signal.SIGTERM)

    Notifier.ready = stop  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory(prefix="ca-") as folder:
        config = parse_config(
            {
                "api": {"socket": f"{folder}/api.sock"},
                "glance": {"auth": "none", "endpoint": "http://127.0.0.1:1"},
                "log": {"level": "error"},
                "metrics": {"listen": ""},
                "storage": {"state_dir": f"{folder}/state"},
            }
        )
        asyncio.run(daemon.run(config))
    Notifier.ready = ready  # type: ignore[method-assign]
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()


def _answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _wait_for_all(daemon_pid: int) -> int:
    """Wait for a daemon and for the programs it has left, and give its exit status."""
    status = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.wait()
            if pid == daemon_pid:
                status = os.waitstatus_to_exitcode(ended)
    return status


def _become_daemon(order: dict[str, Any]) -> None:
    """Run a daemon in a process that was forked for it, and end with it."""
    status = 1
    try:
        _redirect(order["log"])
        os.environ["NOTIFY_SOCKET"] = order["notify"]
        if order["failpoints"] is not None:
            Failpoints(_read(order["failpoints"])).install()
        path = Path(order["config"])
        asyncio.run(daemon.run(load_config(path), path))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stderr.flush()
        # The buffers and the orders belong to the parent.
        os._exit(status)


def _read(failpoints: dict[str, Any]) -> Order:
    intrusion = failpoints.pop("intrusion")
    return Order(**failpoints, intrusion=None if intrusion is None else Intrusion(**intrusion))


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(written, 1)
    os.dup2(written, 2)


if __name__ == "__main__":
    main()
