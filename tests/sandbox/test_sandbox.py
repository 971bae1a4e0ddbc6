"""What a program that is shut in can reach, how it ends, and which way is taken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cacheagent.backends import locks
from cacheagent.backends.qemuimg import ProgressReader
from cacheagent.errors import (
    ConfigError,
    HostUnavailableError,
    ProgramKilledError,
    ProgramMissingError,
)
from cacheagent.model import SandboxKind
from cacheagent.process import Completed, Limits
from cacheagent.sandbox import Files, Sandbox, bubblewrap, find_sandbox, runner
from cacheagent.sandbox.sandbox import AT_ONCE
from tests.needs import require, require_bubblewrap, require_programs

MIB = 1 << 20
F_OFD_SETLK = 37
UNSHARED_WRITING = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0)
"""How QEMU says that nobody else may write (block/file-posix.c, RAW_LOCK_SHARED_BASE)."""


async def shell(
    sandbox: Sandbox, script: str, *, files: Files | None = None, limits: Limits | None = None
) -> Completed:
    """Run a script with nothing but these files."""
    words = ["bash", "-c", script]
    return await sandbox.run(words, limits=limits or Limits(), files=files or Files())


async def test_what_it_says_and_how_it_ends_comes_back(sandbox: Sandbox) -> None:
    """Whoever runs a program learns the same as without a sandbox."""
    done = await shell(sandbox, "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", "err\n")


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    """Not even what listens on this very machine can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"/dev/tcp/127.0.0.1/{server.getsockname()[1]}"
        done = await shell(sandbox, f"exec 3<>{address}")
    assert "Connection refused" in done.stderr


async def test_no_file_of_the_host_can_be_read_but_those_that_were_named(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """An image that names another tenant's disk gets nothing of it."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("ours")
    theirs.write_text("theirs")
    script = f"cat {ours}; cat {theirs} /etc/passwd /proc/self/maps"
    done = await shell(sandbox, script, files=Files(read=(ours,)))
    assert done.stdout == b"ours"
    assert done.stderr.count("No such file or directory") == 3
    listing = await shell(sandbox, f"ls {tmp_path} /etc", files=Files(read=(ours,)))
    assert "theirs" not in listing.stdout.decode()
    assert "passwd" not in listing.stdout.decode()


async def test_nothing_can_be_written_but_the_target(sandbox: Sandbox, tmp_path: Path) -> None:
    """Neither the source, nor a file beside the target, nor anything of the system."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("source")
    places = (source, tmp_path / "beside", "/usr/it", "/tmp/it", "/it")  # noqa: S108 -- refused
    script = "".join(f"echo x > {place}; " for place in places) + f"echo y > {target}"
    done = await shell(sandbox, script, files=Files(read=(source,), write=(target,)))
    assert done.returncode == 0
    assert done.stderr.count("Read-only file system") + done.stderr.count("No such file") == 5
    assert target.read_text() == "y\n"
    assert source.read_text() == "source"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


async def test_it_has_no_privileges_and_gets_none(sandbox: Sandbox) -> None:
    """Neither capabilities nor a namespace in which it would have some."""
    done = await shell(sandbox, "mount -t tmpfs none /usr; unshare --user true; unshare --net true")
    assert done.returncode != 0
    assert "unshare failed: No space left on device" in done.stderr
    assert "Operation not permitted" in done.stderr


async def test_it_sees_no_process_of_the_host(sandbox: Sandbox) -> None:
    """It cannot kill the daemon, though it runs as the same user."""
    done = await shell(sandbox, f"kill -0 {os.getpid()}")
    assert "No such process" in done.stderr


async def test_a_link_in_place_of_the_target_is_not_followed(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """A symbolic link that somebody planted leads nowhere."""
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_text("theirs")
    target.symlink_to(victim)
    done = await shell(sandbox, f"echo x > {target}", files=Files(write=(target,)))
    assert done.returncode != 0
    assert "symbolic link" in done.last_words
    assert victim.read_text() == "theirs"


async def test_a_target_that_cannot_be_made_is_a_failure_of_the_program(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """The reason is told as the program itself would have told it."""
    target = tmp_path / "none" / "target"
    done = await shell(sandbox, "true", files=Files(write=(target,)))
    assert done.last_words == f"{target}: No such file or directory"


async def test_limits_hold_inside_and_are_told(sandbox: Sandbox, tmp_path: Path) -> None:
    """A program that goes beyond them ends as it does without a sandbox."""
    target = tmp_path / "target"
    files = Files(write=(target,))
    limits = Limits(file_size=MIB)
    done = await shell(sandbox, f"exec truncate -s 9M {target}", files=files, limits=limits)
    assert done.last_words == "was stopped by its limit on the size of a file"
    assert target.stat().st_size == 0
    told = await shell(sandbox, "ulimit -v", limits=Limits(memory=64 * MIB))
    assert told.stdout == b"65536\n"


async def test_a_program_that_somebody_killed_may_be_tried_again(sandbox: Sandbox) -> None:
    """The kernel that ran out of memory is told from an image that is bad."""
    with pytest.raises(ProgramKilledError, match="bash was killed by SIGKILL"):
        await shell(sandbox, "kill -KILL $$")


async def test_a_program_that_is_not_installed_is_named(sandbox: Sandbox) -> None:
    """What is missing is the program, and not the sandbox."""
    with pytest.raises(ProgramMissingError, match="no-such-program is not installed"):
        await sandbox.run(["no-such-program"], limits=Limits(), files=Files())


async def test_direct_io_and_holes_work_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    """A conversion goes past the page cache, and leaves zeros out, as it does outside."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(MIB))
    try:
        os.close(os.open(source, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        require(condition=False, reason=f"{tmp_path} has no direct I/O")
    script = (
        f"dd if={source} of={target} bs=1M iflag=direct oflag=direct && truncate -s 8M {target}"
    )
    done = await shell(sandbox, script, files=Files(read=(source,), write=(target,)))
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == source.read_bytes() + bytes(7 * MIB)
    assert target.stat().st_blocks * 512 < 2 * MIB


async def test_locks_of_guests_are_respected_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    """A disk that a guest has open cannot be resized: the lock belongs to the file."""
    require_programs("qemu-img")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    words = ["qemu-img", "resize", "-q", "-f", "raw", str(disk), "2M"]
    with disk.open("rb") as guest:
        fcntl.fcntl(guest, F_OFD_SETLK, UNSHARED_WRITING)
        done = await sandbox.run(words, limits=Limits(), files=Files(write=(disk,)))
    assert 'Failed to get "write" lock' in done.last_words
    assert (await sandbox.run(words, limits=Limits(), files=Files(write=(disk,)))).returncode == 0


async def test_locks_from_inside_are_seen_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    """A qemu-img at work counts as one that uses the file."""
    require_programs("qemu-img")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(16 * MIB))
    begun = asyncio.Event()
    # At 64 KiB a second it would be busy for minutes.
    words = ["qemu-img", "convert", "-p", "-r", "64k", "-f", "raw", "-O", "raw"]
    run = asyncio.ensure_future(
        sandbox.run(
            [*words, str(source), str(target)],
            limits=Limits(),
            files=Files(read=(source,), write=(target,)),
            on_stdout=ProgressReader(lambda done: begun.set() if done else None).feed,
        )
    )
    await begun.wait()
    assert await asyncio.to_thread(locks.in_use, source)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not await asyncio.to_thread(locks.in_use, source)


HOLD = "exec 9>>{target}; flock 9; setsid sleep 1000 & echo held; wait"
"""Lock the target, and leave a child behind that holds on to it in a session of its own."""


async def _holding(sandbox: Sandbox, target: Path) -> asyncio.Future[Completed]:
    """Start a program that holds a lock on ``target``, and return when it does."""
    held = asyncio.Event()
    run = asyncio.ensure_future(
        sandbox.run(
            ["bash", "-c", HOLD.format(target=target)],
            limits=Limits(),
            files=Files(write=(target,)),
            on_stdout=lambda _data: held.set(),
        )
    )
    await held.wait()
    assert _locked(target)
    return run


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_who_is_cancelled_leaves_nothing_behind(sandbox: Sandbox, tmp_path: Path) -> None:
    """When the request has gone, so has its program, and all that it began."""
    target = tmp_path / "target"
    run = await _holding(sandbox, target)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not await asyncio.to_thread(_locked, target)


async def test_who_is_cancelled_again_still_waits_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is not removed or made anew while something inside may still write to it."""
    require_bubblewrap()
    loop, waiting, over = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    wait = bubblewrap.wait_until_gone

    def slow(told: int) -> None:
        loop.call_soon_threadsafe(waiting.set)
        over.wait()
        wait(told)

    monkeypatch.setattr(bubblewrap, "wait_until_gone", slow)
    run = asyncio.ensure_future(
        shell(Sandbox(kind=SandboxKind.BUBBLEWRAP, socket=tmp_path), "true")
    )
    await waiting.wait()
    for _ in range(2):
        run.cancel()
        await asyncio.sleep(0)
    gave_up = run.done()
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not gave_up


async def test_a_program_that_ends_leaves_no_child_behind(sandbox: Sandbox, tmp_path: Path) -> None:
    """What it began ends with it."""
    target = tmp_path / "target"
    script = f"exec 9>>{target}; flock 9; setsid sleep 1000 >/dev/null 2>&1 &"
    done = await shell(sandbox, script, files=Files(write=(target,)))
    assert done.returncode == 0
    assert not await asyncio.to_thread(_locked, target)


async def test_a_unit_that_is_away_may_come_back(tmp_path: Path) -> None:
    """A program is not run without its sandbox; whoever asked may try again."""
    away = Sandbox(kind=SandboxKind.SYSTEMD, socket=tmp_path / "sandbox.sock")
    with pytest.raises(HostUnavailableError, match=r"sandbox\.sock: No such file"):
        await shell(away, "true")


async def test_a_unit_that_is_stopped_is_told_from_a_program_that_fails(tmp_path: Path) -> None:
    """A connection that is closed without a reply says nothing of the image."""

    def hang_up(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(1)
        connection.close()

    address = tmp_path / "sandbox.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        serving = asyncio.ensure_future(asyncio.to_thread(hang_up, server))
        stopped = Sandbox(kind=SandboxKind.SYSTEMD, socket=address)
        with pytest.raises(HostUnavailableError, match="bash was killed by SIGTERM"):
            await shell(stopped, "true")
        await serving


async def test_a_unit_that_takes_nobody_in_may_do_so_later(tmp_path: Path) -> None:
    """Where too many wait for it already, no program is run, and whoever asked may try again."""
    address = tmp_path / "sandbox.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(str(address))
        server.listen(0)
        waiting.connect(str(address))
        full = Sandbox(kind=SandboxKind.SYSTEMD, socket=address)
        with pytest.raises(HostUnavailableError):
            await shell(full, "true")


@pytest.mark.parametrize(
    "script",
    [
        "echo 'bwrap: Creating new namespace failed: Resource temporarily unavailable' >&2; exit 1",
        "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
    ],
)
async def test_a_sandbox_that_fails_is_told_from_a_program_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """A host that cannot shut a program in just now says nothing of the image."""
    _path_with(tmp_path, "bwrap", script)
    monkeypatch.setattr("cacheagent.process.ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    sandbox = Sandbox(kind=SandboxKind.BUBBLEWRAP, socket=tmp_path)
    with pytest.raises(HostUnavailableError, match="bwrap: "):
        await shell(sandbox, "true")


@pytest.mark.parametrize("kind", SandboxKind)
async def test_a_host_without_room_for_another_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: SandboxKind
) -> None:
    """Out of processes or of descriptors: whoever asked may try again."""

    def none_left(*_words: object, **_options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
    monkeypatch.setattr(os, "pipe", none_left)
    with pytest.raises(HostUnavailableError):
        await shell(Sandbox(kind=kind, socket=tmp_path / "none"), "true")


async def test_a_crowd_of_programs_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many disks are wanted at a time, the host runs a bounded number of programs."""
    running: list[object] = []
    full, going_on = asyncio.Event(), asyncio.Event()

    async def counted(argv: object, **_options: object) -> Completed:
        running.append(argv)
        if len(running) == AT_ONCE:
            full.set()
        await going_on.wait()
        return Completed(returncode=0, stdout=b"", stderr="")

    monkeypatch.setattr("cacheagent.sandbox.sandbox.run_limited", counted)
    sandbox = Sandbox(kind=SandboxKind.RLIMITS, socket=Path("/none"))
    crowd = [asyncio.ensure_future(shell(sandbox, "true")) for _ in range(3 * AT_ONCE)]
    await full.wait()
    for _ in crowd:
        await asyncio.sleep(0)
    assert len(running) == AT_ONCE
    going_on.set()
    await asyncio.gather(*crowd)
    assert len(running) == len(crowd)


async def test_long_programs_never_have_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images are being converted, a disk that takes milliseconds does not wait."""
    began, going_on = asyncio.Event(), asyncio.Event()

    async def run(argv: list[str], **_options: object) -> Completed:
        if argv != ["quick"]:
            began.set()
            await going_on.wait()
        return Completed(returncode=0, stdout=b"", stderr="")

    monkeypatch.setattr("cacheagent.sandbox.sandbox.run_limited", run)
    sandbox = Sandbox(kind=SandboxKind.RLIMITS, socket=Path("/none"))
    crowd = [
        asyncio.ensure_future(
            sandbox.run(["long"], limits=Limits(), files=Files(), on_stdout=lambda _: None)
        )
        for _ in range(3 * AT_ONCE)
    ]
    await began.wait()
    quick = asyncio.ensure_future(sandbox.run(["quick"], limits=Limits(), files=Files()))
    for _ in crowd:
        await asyncio.sleep(0)
    ended = quick.done()
    going_on.set()
    await asyncio.gather(quick, *crowd)
    assert ended


@pytest.mark.parametrize("kept", [True, False])
def test_bubblewrap_needs_nobody_to_hear_what_it_has_begun(*, kept: bool) -> None:
    """A daemon that goes does not break the pipe by which bubblewrap tells of its first process.

    Without the other end in its own hands it dies of that, and its child waits for it for ever.
    """
    require_bubblewrap()
    told, tell = os.pipe()
    words = bubblewrap.words(Files(), "true", tell=tell)
    # The program is started late enough for the pipe to be closed here.
    waiting = ["sh", "-c", 'read -r _; exec "$@"', "sh", *words, "true"]
    ends = (told, tell) if kept else (tell,)
    with subprocess.Popen(
        waiting, stdin=subprocess.PIPE, pass_fds=ends, start_new_session=True
    ) as process:
        os.close(told)
        os.close(tell)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        try:
            assert (process.wait() == 0) is kept
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Refusals:
    """Takes down what did not work."""

    def __init__(self) -> None:
        self.kinds: list[SandboxKind] = []

    def __call__(self, kind: SandboxKind, why: str) -> None:
        """Hear of one."""
        assert why
        self.kinds.append(kind)


async def test_the_safest_way_that_works_is_taken(unit: Path, tmp_path: Path) -> None:
    """The unit where there is one, else bubblewrap."""
    require_programs("qemu-img")
    refusals = Refusals()
    for address, kind in ((unit, SandboxKind.SYSTEMD), (tmp_path / "x", SandboxKind.BUBBLEWRAP)):
        found = await find_sandbox(None, socket=address, program="qemu-img", on_refusal=refusals)
        assert found.kind is kind
    assert refusals.kinds == [SandboxKind.SYSTEMD]


async def test_without_user_namespaces_limits_are_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that forbids them is served all the same, and it is known how."""
    _path_with(
        tmp_path, "bwrap", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    )
    monkeypatch.setattr("cacheagent.process.ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    refusals = Refusals()
    found = await find_sandbox(
        None, socket=tmp_path / "none", program="qemu-img", on_refusal=refusals
    )
    assert found.kind is SandboxKind.RLIMITS
    assert refusals.kinds == [SandboxKind.SYSTEMD, SandboxKind.BUBBLEWRAP]


@pytest.mark.parametrize("kind", [SandboxKind.SYSTEMD, SandboxKind.BUBBLEWRAP])
async def test_a_way_that_was_asked_for_is_never_left_out(
    kind: SandboxKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who demands it gets a daemon that does not start, and the reason."""
    _path_with(tmp_path, "bwrap", "exit 1")
    monkeypatch.setattr("cacheagent.process.ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    with pytest.raises(ConfigError, match=rf"qemu\.sandbox: {kind} does not work here: "):
        await find_sandbox(
            kind, socket=tmp_path / "none", program="qemu-img", on_refusal=Refusals()
        )


def _path_with(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"argv": [], "limits": {}}', b"\xff"])
def test_the_unit_runs_nothing_that_it_does_not_understand(data: bytes) -> None:
    """Whatever reaches its socket and is no order is refused, without a reply."""
    here, there = socket.socketpair()
    with here, there, Path(os.devnull).open("wb") as sink:
        socket.send_fds(here, [data or b" "], [sink.fileno(), sink.fileno()])
        with pytest.raises(ValueError, match=r"."):
            runner.serve(there)


def test_the_program_of_the_unit_is_not_for_people() -> None:
    """Who starts it by hand is told in a sentence what starts it."""
    command = [sys.executable, "-c", "from cacheagent.sandbox.runner import main; main()"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "cacheagent-sandbox is started by cacheagent-sandbox.socket, and not by hand\n"
    )
