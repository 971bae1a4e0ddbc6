"""A guest that runs: QEMU without KVM, a console to read, a line on which it takes jobs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.qmp import QMPClient

from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOOT_TIMEOUT = 150.0
"""Seconds that a boot may take: about 25 on a quiet machine, under software emulation."""

JOB_TIMEOUT = 60.0
MAX_LINE_BYTES = 1 << 24


class GuestFailedError(Exception):
    """The guest did not do what it was told; the message has its console's last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest that takes jobs; ``booted_guest`` makes one.

    ``process`` is its QEMU. ``reader`` and ``writer`` are the other end of its second serial
    port, where root/usr/local/sbin/jobs listens.
    """

    folder: Path
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def qmp_socket(self) -> Path:
        """Where QEMU serves QMP, to one client at a time."""
        return self.folder / "qmp.sock"

    def console(self) -> str:
        """Return what the guest has written to its console so far."""
        return (self.folder / "console.log").read_text(errors="replace")

    async def ready(self) -> None:
        """Wait until the guest has booted and takes jobs."""
        if await self._line(BOOT_TIMEOUT) != "ready":
            raise self._failed("the guest's first word is not that it is ready")

    async def run(self, command: str) -> str:
        """Run ``command`` by the guest's shell, as root; return what it wrote.

        Raises ``GuestFailedError`` on an exit status other than 0, when the guest is gone, and
        when ``JOB_TIMEOUT`` seconds have passed.
        """
        self._send(command)
        status, _, output = (await self._line(JOB_TIMEOUT)).partition(" ")
        text = base64.b64decode(output).decode(errors="replace")
        if status != "0":
            raise self._failed(f"{command!r} exits with {status}: {text}")
        return text

    async def power_off(self) -> None:
        """Let the guest shut itself down, and wait until its QEMU has ended."""
        # No answer is waited for: the shutdown may be quicker than it.
        self._send("systemctl poweroff")
        async with asyncio.timeout(JOB_TIMEOUT):
            status = await self.process.wait()
        if status:
            raise self._failed(f"QEMU ended with status {status}")

    @contextlib.asynccontextmanager
    async def qmp(self) -> AsyncIterator[QMPClient]:
        """Connect to the guest's QMP socket for as long as the block lasts."""
        client = QMPClient("guest")
        await client.connect(str(self.qmp_socket))
        try:
            yield client
        finally:
            await client.disconnect()

    def _send(self, command: str) -> None:
        self.writer.write(base64.b64encode(command.encode()) + b"\n")

    async def _line(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                line = await self.reader.readline()
        except TimeoutError:
            raise self._failed(f"no word from the guest for {seconds} seconds") from None
        if not line.endswith(b"\n"):
            raise self._failed("the guest is gone")
        return line.decode().strip()

    def _failed(self, what: str) -> GuestFailedError:
        return GuestFailedError(f"{what}; its console ends with:\n{self.console()[-3000:]}")


@contextlib.asynccontextmanager
async def booted_guest(disk: Path, *extra: str, disk_format: str = "qcow2") -> AsyncIterator[Guest]:
    """Boot a guest from ``disk`` and give it when it takes jobs; afterwards its QEMU is gone.

    ``extra`` are further arguments for QEMU. Skips the test where QEMU is missing. Raises
    ``GuestFailedError`` when the guest is not up within ``BOOT_TIMEOUT`` seconds.
    """
    require_programs("qemu-system-x86_64")
    # Not pytest's own folder: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        command = [*_command(folder, disk, disk_format), *extra]
        async with _called_back(folder / "jobs.sock") as call, _running(command) as process:
            reader, writer = await asyncio.wait_for(call, BOOT_TIMEOUT)
            guest = Guest(folder=folder, process=process, reader=reader, writer=writer)
            try:
                await guest.ready()
                yield guest
            finally:
                writer.close()


def _command(folder: Path, disk: Path, disk_format: str) -> list[str]:
    # JSON: in QEMU's own notation a comma in a path would have to be doubled.
    file = {"driver": "file", "filename": str(disk)}
    node = {"driver": disk_format, "node-name": "disk0", "file": file}
    return [
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512"),
        *("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk0"),
        *("-chardev", f"file,id=console,path={folder}/console.log", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=jobs,path={folder}/jobs.sock", "-serial", "chardev:jobs"),
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
    ]


@contextlib.asynccontextmanager
async def _called_back(
    path: Path,
) -> AsyncIterator[asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Listen before QEMU starts: what a guest says with nobody connected would be lost."""
    call = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(
        lambda reader, writer: call.set_result((reader, writer)), path, limit=MAX_LINE_BYTES
    )
    try:
        yield call
    finally:
        server.close()


@contextlib.asynccontextmanager
async def _running(command: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
