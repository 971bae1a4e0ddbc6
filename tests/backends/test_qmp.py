"""What guests say over QMP, and everything that can be behind a socket instead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.qcow2 import bases_named
from cacheagent.backends.qmp import GuestFiles, Guests
from tests.fakes.qcow2 import write_header
from tests.fakes.values import base_id
from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}
DESCRIPTORS = Path("/proc/self/fd")
BASE = f"{base_id(1)}.raw"


@pytest.fixture(autouse=True)
async def _nothing_is_left(capfd: pytest.CaptureFixture[str]) -> AsyncIterator[None]:
    """Fail a test that leaves a task, an open file, an unheard error or a line of the log."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, each: complaints.append(each))
    before = set(DESCRIPTORS.iterdir())
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert set(DESCRIPTORS.iterdir()) <= before
    assert complaints == []
    assert capfd.readouterr().err == ""


@asynccontextmanager
async def guest(
    folder: Path, *nodes: dict[str, object]
) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """Run QEMU's storage daemon with these block nodes, and give its QMP socket and itself."""
    require_programs("qemu-storage-daemon")
    path = folder / "guest.sock"
    # It inherits a socket that listens, so that nobody has to wait until it does.
    with bound(path) as listener:
        listener.listen()
        process = await asyncio.create_subprocess_exec(
            "qemu-storage-daemon",
            *("--chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"),
            *("--monitor", "chardev=qmp"),
            *(part for node in nodes for part in ("--blockdev", json.dumps(node))),
            pass_fds=[listener.fileno()],
        )
    try:
        yield path, process
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def peer(
    path: Path, *says: object, hangs_up: bool = False
) -> AsyncIterator[asyncio.Queue[bytes]]:
    """Listen on a socket, and say each thing after a command was heard, the first at once."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    done = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, what in enumerate(says):
            if number:
                heard.put_nowait(await reader.read(1 << 16))
            writer.write(what if isinstance(what, bytes) else json.dumps(what).encode() + b"\n")
        if not hangs_up:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The other side may go at any moment.
        with suppress(OSError):
            await talk(reader, writer)
        done.set()

    server = await asyncio.start_unix_server(served, path)
    try:
        yield heard
        await done.wait()
    finally:
        server.close()
        await server.wait_closed()


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """Make a socket that nobody listens on, until the body says so."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        yield made


async def ask(*patterns: Path | str, timeout: float = 5.0) -> GuestFiles:  # noqa: ASYNC109 it is handed on
    """Ask what is behind the sockets."""
    return await Guests(timeout=timeout).files([str(pattern) for pattern in patterns])


async def reason(path: Path, timeout: float = 5.0) -> str:  # noqa: ASYNC109 it is handed on
    """Ask behind one socket, of which nothing can be known, and say why."""
    found = await ask(path, timeout=timeout)
    assert found.names == {}
    (why,) = found.unreachable.values()
    assert list(found.unreachable) == [path]
    return why


def reply(number: int, nodes: object) -> dict[str, object]:
    """Give an answer to the command of this number."""
    return {"return": nodes, "id": f"__qmp#{number:05d}"}


async def test_guest_tells_every_file_it_has_open(tmp_path: Path) -> None:
    """All files of a chain are named, the base behind it too, however it was opened."""
    bases = tmp_path / "bases"
    bases.mkdir()
    (bases / BASE).write_bytes(bytes(1 << 20))
    overlay = write_header(tmp_path / "overlay.qcow2")
    require_programs("qemu-img")
    command = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"bases/{BASE}")
    process = await asyncio.create_subprocess_exec(*command, str(overlay))
    assert await process.wait() == 0
    file = {"driver": "file", "filename": str(overlay)}
    node: dict[str, object] = {"driver": "qcow2", "node-name": "disk", "file": file}
    alone: dict[str, object] = {**node, "backing": None}
    for each in (node, alone):
        async with guest(tmp_path, each) as (path, _):
            found = await ask(path)
        assert found.unreachable == {}
        assert str(overlay) in found.names[path]
        assert await asyncio.to_thread(bases_named, bases, found.names[path]) == {BASE}
        path.unlink()


async def test_guests_are_found_by_patterns(tmp_path: Path) -> None:
    """Each socket is asked once, by whatever names the patterns reach it."""
    (tmp_path / "vm-1").mkdir()
    (tmp_path / "vm-1" / "qmp.txt").touch()
    (tmp_path / "vm-1" / "link.sock").symlink_to("qmp.sock")
    (tmp_path / "vm-1" / ".hidden.sock").symlink_to("loop")
    (tmp_path / "file").touch()
    path = tmp_path / "vm-1" / "qmp.sock"
    nodes = [{"file": "/a"}, {"file": "json:{}", "image": {"full-backing-filename": "/b"}}]
    async with peer(path, GREETING, {"return": {}}, reply(0, nodes)) as heard:
        found = await ask(tmp_path / "*" / "*.sock", path, tmp_path / "none*" / "x", "*.nothing")
    (names,) = found.names.values()
    assert names == {"/a", "json:{}", "/b"}
    assert found.unreachable == {}
    commands = [json.loads(heard.get_nowait())["execute"] for _ in range(heard.qsize())]
    assert commands == ["qmp_capabilities", "query-named-block-nodes"]


async def test_nobody_behind_a_socket_is_no_guest(tmp_path: Path) -> None:
    """A socket that a guest left behind, a link to one that is gone, or none at all: no doubt."""
    (tmp_path / "link.sock").symlink_to("gone.sock")
    with bound(tmp_path / "old.sock"):
        found = await ask(tmp_path / "*.sock", tmp_path / "never.sock", tmp_path / "no" / "*")
    assert found == GuestFiles(names={}, unreachable={})


async def test_socket_that_says_nothing_is_unreachable(tmp_path: Path) -> None:
    """Somebody else is connected, or the guest hangs: it may have anything open."""
    path = tmp_path / "qmp.sock"
    async with peer(path):
        assert "no answer in 0.05 s" in await reason(path, timeout=0.05)


async def test_second_client_is_kept_waiting_by_qemu(tmp_path: Path) -> None:
    """While another client is connected, QEMU does not answer; afterwards it does."""
    async with guest(tmp_path) as (path, _):
        reader, writer = await asyncio.open_unix_connection(path)
        assert b"QMP" in await reader.readline()
        assert "another client" in await reason(path, timeout=0.05)
        writer.close()
        await writer.wait_closed()
        assert list((await ask(path)).names) == [path]


async def test_socket_with_a_full_queue_is_unreachable(tmp_path: Path) -> None:
    """Where nobody accepts, and others wait already, there is somebody all the same."""
    path = tmp_path / "qmp.sock"
    with bound(path) as made, ExitStack() as waiting:
        made.listen(0)
        for _ in range(2):
            other = waiting.enter_context(socket.socket(socket.AF_UNIX))
            other.settimeout(0)
            other.connect_ex(str(path))
        assert await reason(path, timeout=0.05)


@pytest.mark.parametrize(
    "says",
    [
        [b"garbage\n"],
        [b"\xff\xfe\n"],
        [b"[" * 100_000 + b"\n"],
        [b"x" * (5 << 20)],
        [[]],
        [{"QMP": 5}],
        [GREETING, {"error": {"class": "GenericError", "desc": "no"}}],
        [GREETING, {"return": {}}, b"garbage\n"],
        [GREETING, {"return": {}}, {"id": []}],
        [GREETING, {"return": {}}, {"error": {"class": "GenericError", "desc": "no"}}],
        [GREETING, {"return": {}}, {"id": "__qmp#00000"}],
        [GREETING, {"return": {}}, {"id": "__qmp#00000", "error": 5}],
        [GREETING, {"return": {}}, reply(0, {})],
        [GREETING, {"return": {}}, reply(0, [5])],
        [GREETING, {"return": {}}, reply(0, [{"file": None}])],
    ],
)
async def test_garbage_is_unreachable(tmp_path: Path, says: list[object]) -> None:
    """Whatever is said that is no answer of QEMU, there is one line about it, and no harm."""
    path = tmp_path / "qmp.sock"
    async with peer(path, *says):
        why = await reason(path)
    assert 0 < len(why) <= 200
    assert "\n" not in why


@pytest.mark.parametrize("says", [[], [GREETING], [GREETING, {"return": {}}]])
async def test_guest_that_dies_is_unreachable(tmp_path: Path, says: list[object]) -> None:
    """A guest that goes while it is asked is in doubt for this once, at whatever moment."""
    path = tmp_path / "qmp.sock"
    async with peer(path, *says, hangs_up=True):
        assert await reason(path)


async def test_guest_that_stands_still_is_unreachable(tmp_path: Path) -> None:
    """A real QEMU that is stopped may have anything open; one that was killed has nothing."""
    async with guest(tmp_path) as (path, process):
        assert (await ask(path)).names == {path: frozenset()}
        process.send_signal(signal.SIGSTOP)
        assert "no answer" in await reason(path, timeout=0.05)
    assert (await ask(path)) == GuestFiles(names={}, unreachable={})


async def test_events_are_not_collected(tmp_path: Path) -> None:
    """A guest that sends events in between is understood."""
    path = tmp_path / "qmp.sock"
    event = json.dumps({"event": "STOP", "timestamp": {}}).encode() + b"\n"
    answer = event * 100 + json.dumps(reply(0, [{"file": "/a"}])).encode() + b"\n"
    async with peer(path, GREETING, {"return": {}}, answer):
        assert (await ask(path)).names == {path: {"/a"}}


async def test_folder_that_cannot_be_listed_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guests may be in a folder that is closed to us, and behind a link that goes round."""
    closed, loop = tmp_path / "closed", tmp_path / "loop"
    closed.mkdir()
    loop.symlink_to(loop)
    real = os.listdir

    def forbidden(path: Path) -> list[str]:
        if path == closed:
            raise PermissionError(13, os.strerror(13), str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", forbidden)
    found = await ask(tmp_path / "c*" / "*.sock", loop)
    assert found.unreachable == {
        closed: "cannot be read: Permission denied",
        loop: "cannot be read: Too many levels of symbolic links",
    }


async def test_one_who_goes_away_leaves_nothing(tmp_path: Path) -> None:
    """A question that is cancelled in the middle closes its connections."""
    path = tmp_path / "qmp.sock"
    async with peer(path, GREETING, {"return": {}}, b"") as heard:
        asking = asyncio.create_task(ask(path))
        for _ in range(2):
            await heard.get()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_guests_are_asked_side_by_side(tmp_path: Path) -> None:
    """Sixteen guests are asked at once: each here answers when fifteen others were asked too."""
    others = asyncio.Barrier(16)
    left: asyncio.Queue[None] = asyncio.Queue()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await others.wait()
        writer.write(b"garbage\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.put_nowait(None)

    async with AsyncExitStack() as stack:
        for number in range(32):
            server = await asyncio.start_unix_server(slow, tmp_path / f"{number}.sock")
            await stack.enter_async_context(server)
        found = await ask(tmp_path / "*.sock")
        for _ in range(32):
            await left.get()
    assert len(found.unreachable) == 32
    assert all("Greeting" in why for why in found.unreachable.values())
