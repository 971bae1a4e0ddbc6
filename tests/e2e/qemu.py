"""What QEMU itself says of a disk, for tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any


async def chain(path: str) -> list[dict[str, Any]]:
    """Give what ``qemu-img info`` says of a disk and of each file behind it."""
    text = await qemu_img("info", "--output=json", "--backing-chain", path)
    found: list[dict[str, Any]] = json.loads(text)
    return found


async def check(path: str) -> None:
    """Let ``qemu-img check`` read all tables of a qcow2 file; a finding fails the test."""
    await qemu_img("check", "-q", "-f", "qcow2", path)


async def content(path: str, disk_format: str, length: int) -> bytes:
    """Read the beginning of a disk as a guest would see it."""
    output = f"{path}.content"
    await qemu_img(
        *("dd", "-f", disk_format, "-O", "raw", "bs=1M", f"count={length >> 20}"),
        *(f"if={path}", f"of={output}"),
    )

    return await asyncio.to_thread(Path(output).read_bytes)


async def write(path: str, disk_format: str, data: bytes) -> None:
    """Write ``data`` at the beginning of a disk as a guest would."""
    source = f"{path}.written"
    await asyncio.to_thread(Path(source).write_bytes, data)
    command = ["qemu-io", "-f", disk_format, "-c", f"write -s {source} 0 {len(data)}", path]
    await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)


async def qemu_img(*arguments: str) -> bytes:
    """Run qemu-img, and give what it prints."""
    done = await asyncio.to_thread(
        subprocess.run, ["qemu-img", *arguments], check=True, stdout=subprocess.PIPE
    )
    return done.stdout
