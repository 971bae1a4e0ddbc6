"""The guest that other tests boot from the agent's disks is itself a sound one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.guest import booted_guest, guest_image

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """Make an overlay of the guest's image, by qemu-img and not by the agent."""
    path = tmp_path / "root.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]
    subprocess.run([*command, str(guest_image()), str(path)], check=True)
    return path


@pytest.mark.guest
@pytest.mark.timeout(600)
async def test_the_guest_boots_from_an_overlay(overlay: Path) -> None:
    """A Debian boots by its own boot loader from an overlay, runs commands and powers off."""
    image = guest_image()
    before = image.read_bytes()
    async with booted_guest(overlay) as guest:
        assert "root=/dev/vda1" in await guest.run("cat /proc/cmdline")
        await guest.run("echo written >/root/note && sync")
        async with guest.qmp() as qmp:
            assert str(image) in str(await qmp.execute("query-named-block-nodes", {"flat": True}))
        await guest.power_off()
    assert guest.process.returncode == 0
    assert image.read_bytes() == before
