"""bubblewrap (bwrap(1)): its command line, and the end of what it has started.

It needs no privileges but user namespaces, and inside no more of them can be made: that is what
exploits of the kernel begin with. QEMU's locks belong to the file, so they meet those of guests
outside (``F_OFD_SETLK``, fcntl(2)); QEMU opens /dev/null to find out whether there are such locks,
and would do without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cacheagent.errors import HostUnavailableError, ProgramMissingError
from cacheagent.process import run_limited, unless_killed
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cacheagent.process import Completed, Limits

# Programs, their libraries, and what the tools for file systems read beside them.
_SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_SETTINGS: Final = ("/etc/ld.so.cache", "/etc/mke2fs.conf")

# Whoever is killed right after it has forked leaves a child of bubblewrap that waits for it for
# ever: only then does the child ask to die with its parent. So a shell outlives bubblewrap by a
# moment. The kernel tells it that the daemon has gone, and it kills the whole process group. If
# the daemon had gone before the kernel was asked for that, the shell has another parent.
_GUARD: Final = """\
trap "kill -KILL 0" TERM
[ $PPID = "$1" ] || exit
shift
"$@" & wait $!"""

_SHUT: Final = (
    *("bwrap", "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-net"),
    *("--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--cap-drop", "ALL", "--chdir", "/"),
)
# No --new-session: run_limited gives the program one without a terminal, and kills by its group.
# No --proc: nothing here needs it, and a unit with ProtectKernelTunables= could not mount it.

_FIRST: Final = re.compile(rb'"child-pid": (\d+)')
_TOLD = 4096
_SIGNALLED = 128
_PATIENCE = 30_000
_NEW_FILE = 0o600
_NOT_THERE = "bwrap: execvp "
_NO_BUBBLEWRAP = 127
_AROUND_IT = ("bwrap:", "sh:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What a program needs of the host's files, beyond itself: absolute paths, each one file.

    Those of ``write`` are made, empty, where they are not there: nothing else can be written,
    nor made beside them.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()


def words(files: Files, program: str, *, tell: int) -> list[str]:
    """Give the words in front of ``program``; bubblewrap tells ``tell`` what it has begun."""
    return [
        *("setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", _GUARD, "sh", str(os.getpid())),
        *_SHUT,
        *("--info-fd", str(tell)),
        *_binds("--ro-bind-try", _SYSTEM),
        *_binds("--ro-bind-try", _SETTINGS),
        *_binds("--dev-bind", ["/dev/null"]),
        *_binds("--ro-bind", _elsewhere(program)),
        *_binds("--ro-bind", map(str, files.read)),
        *_binds("--bind", map(str, files.write)),
        *("--remount-ro", "/", "--"),
    ]


def _binds(option: str, paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield from (option, path, path)


def _elsewhere(program: str) -> list[str]:
    """Give the program where an operator keeps one that is not among the system's."""
    system = any(Path(program).is_relative_to(folder) for folder in _SYSTEM)
    return [program] if program.startswith("/") and not system else []


def make_targets(files: Files) -> None:
    """Make the files that will be written, where they are not there; it blocks.

    Raises: OSError where that cannot be, or a symbolic link lies there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    for path in files.write:
        os.close(os.open(path, flags, _NEW_FILE))


async def run(
    argv: Sequence[str],
    *,
    limits: Limits,
    files: Files,
    on_stdout: Callable[[bytes], None] | None,
) -> Completed:
    """Run a program in bubblewrap, as ``process.run_limited`` runs one without it."""
    told, tell = os.pipe()
    try:
        command = [*words(files, argv[0], tell=tell), *argv]
        # Both ends: when the daemon goes, bubblewrap must not die of the broken pipe before the
        # shell hears of it, and leave its child alone.
        completed = await run_limited(
            command, limits=limits, on_stdout=on_stdout, pass_fds=(told, tell)
        )
    finally:
        os.close(tell)
        await uninterrupted(asyncio.to_thread(wait_until_gone, told))
    return of_the_program(argv[0], completed)


def wait_until_gone(told: int) -> None:
    """Wait for the end of all that bubblewrap began, when itself has ended; it blocks.

    The kernel kills the first process in the namespace as soon as bubblewrap has gone, and the
    others before that one has ended. ``told`` is what it told ``--info-fd``, and is closed.
    """
    try:
        # All that it told is there. The end of the pipe is not waited for: whoever was forked
        # meanwhile has it open too.
        os.set_blocking(told, False)
        first = _FIRST.search(os.read(told, _TOLD))
    except BlockingIOError:
        first = None
    finally:
        os.close(told)
    if first is None:
        return
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(int(first[1]))
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(_PATIENCE)
        finally:
            os.close(pidfd)


def of_the_program(program: str, completed: Completed) -> Completed:
    """Read from the end of bubblewrap how the program in it ended.

    Raises: ProgramMissingError where it is not installed, ProgramKilledError where somebody
    killed it, HostUnavailableError where bubblewrap did not come to begin it.
    """
    if completed.returncode == 1 and completed.stderr.startswith(_NOT_THERE):
        raise ProgramMissingError(f"{program} is not installed")
    if completed.returncode == _NO_BUBBLEWRAP and completed.stderr.startswith("sh:"):
        raise ProgramMissingError("bwrap is not installed")
    if completed.returncode > 0 and completed.stderr.startswith(_AROUND_IT):
        raise HostUnavailableError(completed.last_words)
    if completed.returncode > _SIGNALLED:
        completed = replace(completed, returncode=_SIGNALLED - completed.returncode)
    return unless_killed(program, completed)
