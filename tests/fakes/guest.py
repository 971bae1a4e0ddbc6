"""A QEMU that runs, with a disk open and no guest in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qemu.qmp import QMPClient

from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def running_qemu(overlay: Path, *, locking: bool = True) -> AsyncIterator[Path]:
    """Run a QEMU that has the overlay open, and its whole chain; give its QMP socket.

    ``locking`` False is what libvirt may ask for: then no lock tells of it.
    """
    require_programs("qemu-system-x86_64")
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        # Two sockets: one for whoever watches the guest, one by which the test knows it runs.
        socket, ours = Path(folder, "qmp.sock"), Path(folder, "ours.sock")
        locks = {"locking": "on" if locking else "off"}
        node = {
            "driver": "qcow2",
            "node-name": "disk",
            "file": {"driver": "file", "filename": str(overlay), **locks},
            "backing": {"driver": "raw", "file": {"driver": "file", **locks}},
        }
        node["backing"]["file"]["filename"] = await _backing(overlay)  # type: ignore[index]
        process = await asyncio.create_subprocess_exec(
            *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "32", "-S"),
            *("-nodefaults", "-nographic", "-device", "virtio-blk-pci,drive=disk"),
            *("-qmp", f"unix:{socket},server=on,wait=off"),
            *("-qmp", f"unix:{ours},server=on,wait=off"),
            *("-blockdev", json.dumps(node)),
        )
        client = QMPClient("test")
        try:
            await _connect(client, ours, process)
            yield socket
            await client.execute("quit")
            assert await process.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            with contextlib.suppress(Exception):
                await client.disconnect()


async def _backing(overlay: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *("qemu-img", "info", "-U", "--output=json", str(overlay)), stdout=asyncio.subprocess.PIPE
    )
    text, _ = await process.communicate()
    return str(json.loads(text)["full-backing-filename"])


async def _connect(client: QMPClient, path: Path, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(30):
        while not path.exists():
            assert process.returncode is None
            await asyncio.sleep(0.01)
    await client.connect(str(path))
