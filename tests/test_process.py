"""Programs run under limits, and none of them is ever left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent import process
from cacheagent.errors import HostUnavailableError, ProgramMissingError
from cacheagent.process import (
    ENVIRONMENT,
    LONGEST_COMPLAINT,
    STDERR_LIMIT,
    STDOUT_LIMIT,
    Limits,
    run_limited,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NO_LIMITS = Limits()
PATIENCE = 30_000


def shell(script: str, *words: str) -> list[str]:
    """Give the command line of a shell script."""
    return ["sh", "-c", script, "sh", *words]


def wait_for_ends(pidfds: Sequence[int]) -> bool:
    """Wait until all these processes have ended; False when that takes too long."""
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(PATIENCE):
            return False
        os.close(pidfd)
    return True


class Listener:
    """Takes the process ids that a program prints, and tells when there are so many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._text = b""
        self.pidfds: list[int] = []
        self.heard = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        """Take the next piece of output."""
        self._text += data
        if self._text.count(b"\n") == self._count:
            self.pidfds = [os.pidfd_open(int(pid)) for pid in self._text.split()]
            self.heard.set()


async def test_output_status_and_complaint_are_handed_back() -> None:
    """The caller learns all there is to know of how a program ended."""
    done = await run_limited(
        shell("echo out; echo bad >&2; echo worse >&2; exit 3"), limits=NO_LIMITS
    )
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.last_words == "bad; worse"


async def test_a_complaint_without_end_is_cut_in_front() -> None:
    """What made a program give up is told last, and stays."""
    script = "for each in $(seq 100); do echo entry $each >&2; done; echo gave up >&2; exit 1"
    done = await run_limited(shell(script), limits=NO_LIMITS)
    assert done.last_words.startswith("… ")
    assert done.last_words.endswith("; entry 100; gave up")
    assert len(done.last_words) == LONGEST_COMPLAINT + 2


async def test_a_silent_failure_has_last_words_too() -> None:
    """A program that complains of nothing is described by its status or its signal."""
    silent = await run_limited(["false"], limits=NO_LIMITS)
    assert silent.last_words == "ended with status 1"
    killed = await run_limited(shell("kill -SEGV $$"), limits=NO_LIMITS)
    assert killed.last_words == "was killed by SIGSEGV"
    nameless = await run_limited(shell("kill -40 $$"), limits=NO_LIMITS)
    assert nameless.last_words == "was killed by signal 40"


@pytest.mark.parametrize("signal_name", ["KILL", "TERM", "INT", "HUP"])
async def test_a_program_that_somebody_killed_is_told_from_one_that_failed(
    signal_name: str,
) -> None:
    """Whoever runs it knows that the host is to blame, and that it may go well the next time."""
    # A shell could not die of a signal that was ignored when the tests began, as under nohup.
    script = f"""
import os, signal
number = signal.SIG{signal_name}
if number != signal.SIGKILL:
    signal.signal(number, signal.SIG_DFL)
os.kill(os.getpid(), number)
"""
    with pytest.raises(HostUnavailableError, match=f"was killed by SIG{signal_name}, and not"):
        await run_limited([sys.executable, "-c", script], limits=NO_LIMITS)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'qemu-img: Could not open: Cannot allocate memory' >&2; exit 1",
        "echo 'GLib-ERROR: failed to allocate 4294967296 bytes' >&2; kill -TRAP $$",
    ],
)
async def test_the_limit_of_memory_is_named(script: str) -> None:
    """A program that its limit of memory stopped is told by that, not by how it gave up."""
    done = await run_limited(shell(script), limits=NO_LIMITS)
    assert done.last_words == "was stopped by its limit of memory"


async def test_nothing_is_inherited() -> None:
    """No variable of the daemon, no input and no session of its own reaches the program."""
    script = (
        "env; cat; read -r pid _ _ _ group session _ < /proc/self/stat; echo $pid $group $session"
    )
    done = await run_limited(shell(script), limits=NO_LIMITS)
    *variables, ids = done.stdout.decode().splitlines()
    assert {v for v in variables if not v.startswith(("PWD=", "_="))} == {
        f"{name}={value}" for name, value in ENVIRONMENT.items()
    }
    assert len(set(ids.split())) == 1


async def test_the_limits_are_in_force() -> None:
    """The kernel knows each limit for the program itself."""
    limits = Limits(cpu_seconds=7.5, memory=1 << 30, file_size=4096)
    done = await run_limited(["cat", "/proc/self/limits"], limits=limits)
    lines = done.stdout.decode().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max cpu time"] == "8"
    assert soft["Max address space"] == str(1 << 30)
    assert soft["Max file size"] == "4096"
    assert soft["Max open files"] == "256"
    assert soft["Max core file size"] == "0"


async def test_a_limit_is_never_above_the_daemons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the daemon may have less than is asked for, the program gets that and starts."""
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (100, 200))
    done = await run_limited(["cat", "/proc/self/limits"], limits=Limits(cpu_seconds=1000))
    found = [line.split() for line in done.stdout.decode().splitlines()]
    assert ["Max", "cpu", "time", "200", "200", "seconds"] in found


async def test_a_program_that_burns_cpu_is_stopped() -> None:
    """The limit of CPU time ends an endless loop, and is named."""
    done = await run_limited(shell("while :; do :; done"), limits=Limits(cpu_seconds=1))
    assert done.last_words == "was stopped by its limit of CPU time"


async def test_a_program_that_writes_too_much_is_stopped(tmp_path: Path) -> None:
    """The limit of the file size ends it before the file is larger, and is named."""
    target = tmp_path / "large"
    argv = ["dd", "if=/dev/zero", f"of={target}", "bs=1k", "count=100", "status=none"]
    done = await run_limited(argv, limits=Limits(file_size=10240))
    assert done.last_words == "was stopped by its limit on the size of a file"
    assert target.stat().st_size == 10240


async def test_a_full_file_system_is_recognised() -> None:
    """The complaint of a program tells a lack of space from other failures."""
    full = await run_limited(["cp", "/etc/passwd", "/dev/full"], limits=NO_LIMITS)
    assert full.no_space
    other = await run_limited(["false"], limits=NO_LIMITS)
    assert not other.no_space


async def test_endless_output_does_not_fill_the_memory() -> None:
    """Of the output the beginning is kept, of the complaints the end."""
    script = f"head -c {2 * STDOUT_LIMIT} /dev/zero; seq 100000 >&2"
    done = await run_limited(shell(script), limits=NO_LIMITS)
    assert len(done.stdout) == STDOUT_LIMIT
    assert len(done.stderr) == STDERR_LIMIT
    assert done.stderr.endswith("100000\n")


async def test_a_missing_program_is_named() -> None:
    """The error says which program to install."""
    with pytest.raises(ProgramMissingError, match="no-such-program is not installed"):
        await run_limited(["no-such-program"], limits=NO_LIMITS)


async def test_missing_util_linux_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tools that set limits nothing runs at all."""
    monkeypatch.setattr(process, "ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(ProgramMissingError, match="util-linux"):
        await run_limited(["true"], limits=NO_LIMITS)


async def test_cancelling_kills_the_program_and_its_children() -> None:
    """When the caller gives up, the program has ended, and what it had started ends too."""
    listener = Listener(2)
    script = "sleep 1000 & echo $!; echo $$; wait"
    run = asyncio.ensure_future(run_limited(shell(script), limits=NO_LIMITS, on_stdout=listener))
    await listener.heard.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await asyncio.to_thread(wait_for_ends, listener.pidfds)


async def test_cancelling_a_start_kills_what_has_been_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who gives up while the program is being started leaves neither it nor its children."""
    started: list[asyncio.subprocess.Process] = []
    begun, going_on = asyncio.Event(), asyncio.Event()
    start = asyncio.create_subprocess_exec

    async def slow(*words: str, **options: Any) -> asyncio.subprocess.Process:  # noqa: ANN401 - handed on
        started.append(await start(*words, **options))
        begun.set()
        await going_on.wait()
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    run = asyncio.ensure_future(run_limited(shell("sleep 1000 & wait"), limits=NO_LIMITS))
    await begun.wait()
    run.cancel()
    asyncio.get_running_loop().call_soon(going_on.set)
    with pytest.raises(asyncio.CancelledError):
        await run
    try:
        assert started[0].returncode == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started[0].pid, signal.SIGKILL)


async def test_cancelling_kills_children_that_outlive_the_program() -> None:
    """A child that holds the output open goes as well, though its parent has ended before."""
    listener = Listener(1)
    child = 'while kill -0 "$1" 2>&-; do :; done; echo $$; exec sleep 1000'
    script = f"sh -c '{child}' child $$ &"
    run = asyncio.ensure_future(run_limited(shell(script), limits=NO_LIMITS, on_stdout=listener))
    await listener.heard.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await asyncio.to_thread(wait_for_ends, listener.pidfds)


async def test_a_child_that_is_left_behind_is_killed() -> None:
    """A program that ends well leaves nothing running, even what has let go of its output."""
    listener = Listener(1)
    script = "sleep 1000 >/dev/null 2>&1 & echo $!"
    done = await run_limited(shell(script), limits=NO_LIMITS, on_stdout=listener)
    assert done.returncode == 0
    assert await asyncio.to_thread(wait_for_ends, listener.pidfds)


async def test_a_listener_that_fails_ends_the_program() -> None:
    """An error in the caller's own callback comes through, and the program goes."""
    pidfds = []

    def refuse(data: bytes) -> None:
        pidfds.append(os.pidfd_open(int(data)))
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await run_limited(shell("echo $$; exec sleep 1000"), limits=NO_LIMITS, on_stdout=refuse)
    assert await asyncio.to_thread(wait_for_ends, pidfds)


def test_the_program_dies_with_the_daemon() -> None:
    """A daemon that is killed outright leaves no program behind that still writes."""
    code = (
        "import asyncio, os\n"
        "from cacheagent.process import Limits, run_limited\n"
        "argv = ['sh', '-c', 'echo $$; exec sleep 1000']\n"
        "tell = lambda data: os.write(1, data)\n"
        "asyncio.run(run_limited(argv, limits=Limits(), on_stdout=tell))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pidfd = os.pidfd_open(int(daemon.stdout.readline()))
        daemon.send_signal(signal.SIGKILL)
        assert wait_for_ends([pidfd])
