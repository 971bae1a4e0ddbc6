"""Programs of the host, run under limits: with nothing inherited, and never left behind.

The limits are set by prlimit(1), and setpriv(1) has the kernel kill the program when the daemon
goes, however it goes; both replace themselves by the program, so its process id stays the same.
A ``preexec_fn`` could do that without them, but is not safe in a process with threads. Both are
part of util-linux, on which Debian cannot do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import resource
import signal
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cacheagent.errors import ProgramKilledError, ProgramMissingError
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from asyncio import StreamReader
    from asyncio.subprocess import Process
    from collections.abc import Awaitable, Callable, Mapping, Sequence

# Tools that make file systems lie in sbin, which the PATH of a user may lack. glibc gives each
# thread an arena of 64 MiB of address space, which would count against the limit of memory.
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "MALLOC_ARENA_MAX": "2",
}
"""All that a program finds in its environment."""

STDOUT_LIMIT: Final = 4 << 20
"""Bytes of output that are kept; what goes beyond is read and dropped."""

STDERR_LIMIT: Final = 4096
"""Bytes that are kept of the end of what the program complained about."""

_OPEN_FILES = 256
_CPU_GRACE = 5
_CHUNK = 65536
_NOT_FOUND = 127
_STARTERS = ("prlimit:", "setpriv:")
_LIMIT_SIGNALS: Final[Mapping[int, str]] = {
    signal.SIGXCPU: "was stopped by its limit of CPU time",
    signal.SIGXFSZ: "was stopped by its limit on the size of a file",
}

_HOST_SIGNALS: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What others send: the kernel that is out of memory, an operator, a host that goes down.

No limit ends in one of them. RLIMIT_CPU sends SIGXCPU first, which kills (setrlimit(2)).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use: CPU seconds, bytes of address space, bytes of any one file.

    None stands for no limit. Files are limited when written to; a pipe is no file here.
    """

    cpu_seconds: float | None = None
    memory: int | None = None
    file_size: int | None = None


LONGEST_COMPLAINT = 300
"""Letters of what a program complains of that are passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a program ended: its status (negative: the signal that killed it) and its words."""

    returncode: int
    stdout: bytes
    stderr: str

    @property
    def last_words(self) -> str:
        """Why it failed, in one line: the limit or signal that killed it, or its complaint.

        Of a complaint without end, such as one line for each broken table entry, the end is
        given: what made the program give up comes last.
        """
        if self._found_no_memory:
            return "was stopped by its limit of memory"
        if self.returncode < 0:
            number = -self.returncode
            return _LIMIT_SIGNALS.get(number) or _by_signal(number)
        complaint = "; ".join(line.strip() for line in self.stderr.splitlines() if line.strip())
        if len(complaint) > LONGEST_COMPLAINT:
            complaint = f"… {complaint[-LONGEST_COMPLAINT:]}"
        return complaint or f"ended with status {self.returncode}"

    @property
    def at_limit(self) -> bool:
        """Whether one of its limits stopped it."""
        return self._found_no_memory or -self.returncode in _LIMIT_SIGNALS

    @property
    def _found_no_memory(self) -> bool:
        # QEMU and GLib complain, and then abort.
        aborted = self.returncode < 0 and "failed to allocate" in self.stderr
        return aborted or os.strerror(errno.ENOMEM) in self.stderr

    @property
    def no_space(self) -> bool:
        """Whether it complained that the file system is full, or the quota used up."""
        return any(os.strerror(code) in self.stderr for code in (errno.ENOSPC, errno.EDQUOT))


def _by_signal(number: int) -> str:
    try:
        return f"was killed by {signal.Signals(number).name}"
    except ValueError:  # most of the real-time signals have no name
        return f"was killed by signal {number}"


async def run_limited(
    argv: Sequence[str],
    *,
    limits: Limits,
    on_stdout: Callable[[bytes], None] | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end, whatever its status, and give its last words.

    It gets a session of its own, no input and ``ENVIRONMENT``. With ``on_stdout`` its output is
    handed over as it comes, and not kept. When the caller is cancelled, or ``on_stdout`` raises,
    the program has ended when this raises. Children that it left behind are killed in any case.
    Of the daemon's descriptors it has ``pass_fds``.

    Raises: ProgramMissingError where ``argv[0]`` is not installed, ProgramKilledError where
    somebody else killed it before its end.
    """
    starting = asyncio.ensure_future(_start([*prefix(limits), *argv], pass_fds))
    try:
        # asyncio would end the start by killing this one process, and not those of its group.
        process = await uninterrupted(starting)
        completed = await attend(process.stdout, process.stderr, process.wait(), on_stdout)
    finally:
        await uninterrupted(_end(starting))
    if completed.returncode == _NOT_FOUND and completed.stderr.startswith(_STARTERS):
        raise ProgramMissingError(f"{argv[0]} is not installed")
    return unless_killed(argv[0], completed)


def unless_killed(program: str, completed: Completed) -> Completed:
    """Give how the program ended. Raises: ProgramKilledError where somebody else killed it."""
    number = -completed.returncode
    if number in _HOST_SIGNALS:
        raise ProgramKilledError(f"{program} {_by_signal(number)}, and not by its limits")
    return completed


def prefix(limits: Limits) -> list[str]:
    """Give the words in front of a program that bind it to ``limits`` and to who starts it."""
    words = ["setpriv", "--pdeathsig", "KILL", "--", "prlimit", "--core=0"]
    words.append(_limit("nofile", resource.RLIMIT_NOFILE, _OPEN_FILES))
    if limits.cpu_seconds is not None:
        seconds = math.ceil(limits.cpu_seconds)
        words.append(_limit("cpu", resource.RLIMIT_CPU, seconds, grace=_CPU_GRACE))
    if limits.memory is not None:
        words.append(_limit("as", resource.RLIMIT_AS, limits.memory))
    if limits.file_size is not None:
        words.append(_limit("fsize", resource.RLIMIT_FSIZE, limits.file_size))
    return [*words, "--"]


def _limit(name: str, kind: int, value: int, *, grace: int = 0) -> str:
    # Without privileges no limit can be raised beyond the hard one that the daemon has itself.
    _, most = resource.getrlimit(kind)
    soft, hard = (
        wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        for wanted in (value, value + grace)
    )
    return f"--{name}={soft}:{hard}"


async def _start(argv: Sequence[str], pass_fds: Sequence[int]) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise ProgramMissingError(f"{argv[0]} is not installed (util-linux)") from error


async def attend(
    stdout: StreamReader | None,
    stderr: StreamReader | None,
    ended: Awaitable[int],
    on_stdout: Callable[[bytes], None] | None,
) -> Completed:
    """Read what a program says until both streams end, and wait for the status of its end."""
    kept, complaints = bytearray(), bytearray()

    def keep(data: bytes) -> None:
        kept.extend(data[: STDOUT_LIMIT - len(kept)])

    def keep_end(data: bytes) -> None:
        complaints.extend(data)
        del complaints[:-STDERR_LIMIT]

    _, _, returncode = await asyncio.gather(
        _drain(stdout, on_stdout or keep),
        _drain(stderr, keep_end),
        ended,
    )
    words = complaints.decode(errors="replace")
    return Completed(returncode=returncode, stdout=bytes(kept), stderr=words)


async def _drain(stream: StreamReader | None, take: Callable[[bytes], None]) -> None:
    while stream is not None and (data := await stream.read(_CHUNK)):
        take(data)


async def _end(starting: asyncio.Future[Process]) -> None:
    if starting.cancelled() or starting.exception() is not None:
        return
    process = starting.result()
    # A session of its own makes it the leader of a group that its children belong to as well.
    # They may outlive it, and hold its output open.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
