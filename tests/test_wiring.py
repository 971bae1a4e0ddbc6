"""What is looked at before a daemon starts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest

from cacheagent.backends.store import Store
from cacheagent.errors import ConfigError, QemuImgError
from cacheagent.policy.layout import Layout
from cacheagent.wiring import check_overlay_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.backends.qemuimg import QemuImg


class FailingQemu:
    """A qemu-img that makes no file, for one reason."""

    def __init__(self, error: QemuImgError) -> None:
        self._error = error

    async def create(self, *_words: object, **_options: object) -> None:
        """Fail."""
        raise self._error


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Open the folders of an agent."""
    layout = Layout(state_dir=tmp_path / "state", instances_dir=tmp_path / "instances")
    opened = Store(layout, group=None, disk_mode=0o660)
    await opened.open()
    yield opened
    await opened.close()


async def test_options_that_qemu_does_not_take_are_the_operators(store: Store) -> None:
    """A mistake in the options is found at the start, and named."""
    qemu = cast("QemuImg", FailingQemu(QemuImgError("Invalid parameter 'cluster'")))
    with pytest.raises(ConfigError, match=r"overlay\.options: Invalid parameter 'cluster'"):
        await check_overlay_options(qemu, store, "cluster=1")


async def test_full_disk_does_not_keep_a_daemon_from_starting(store: Store) -> None:
    """An agent has to start on a full disk: who else would make room there."""
    qemu = cast("QemuImg", FailingQemu(QemuImgError("No space left on device", no_space=True)))
    await check_overlay_options(qemu, store, "")
    assert list(store.layout.templates.iterdir()) == []


def test_daemon_without_a_keystone_loads_no_library_for_it() -> None:
    """Who has no Keystone pays no memory for those who do."""
    words = "import sys, cacheagent.cli, cacheagent.daemon; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, check=True)
    loaded = set(told.stdout.decode().split())
    assert "aiohttp" in loaded
    assert not loaded & {"keystoneauth1", "openstack"}
