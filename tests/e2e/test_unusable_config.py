"""A daemon that cannot start says why in one sentence, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, without_keystone
from tests.e2e.command import cacheagent
from tests.fakes import lying_glance
from tests.fakes.lying_glance import LyingGlance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Settings = Mapping[str, Mapping[str, object]]

URL = "http://127.0.0.1:9"
USAGE = 2


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a file in it that is good for nothing."""
    with tempfile.TemporaryDirectory(prefix="ca-", ignore_cleanup_errors=True) as path:
        (Path(path) / "junk").write_text("junk\n")
        yield Path(path)


@pytest.fixture
def taken() -> Iterator[str]:
    """Give an address that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def refusal(folder: Path, settings: Settings) -> str:
    """Let a daemon fail to start, and give the one sentence that it says about it."""
    agent = Agent(folder, settings)
    agent.write_config()
    done = await cacheagent("serve", "--config", agent.config)
    assert done.status == USAGE, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert not agent.api_socket.exists()
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("section", "settings", "sentence"),
    [
        ("storage", {"file_group": "nobodys"}, "storage.file_group: there is no group 'nobodys'"),
        ("storage", {"state_dir": "{junk}"}, "[storage]: {junk}: is no folder"),
        ("storage", {"instances_dir": "{junk}/x"}, "[storage]: {junk}: File exists"),
        ("storage", {"instances_dir": "{junk}"}, "[storage]: {junk}: is no folder"),
        ("api", {"socket_group": "nobodys"}, "api.socket_group: there is no group 'nobodys'"),
        ("api", {"token_file": "{junk}"}, "api.token_file: {junk}: line 1 is not the SHA-256"),
        ("api", {"token_file": "{junk}x"}, "api.token_file: {junk}x: No such file or directory"),
        (
            "api",
            {"listen": "127.0.0.1:0", "tls_cert": "{junk}", "tls_key": "{junk}"},
            "api.tls_cert, api.tls_key: {junk}, {junk}: [SSL] PEM lib",
        ),
        ("overlay", {"options": "nosuch=3k"}, "overlay.options: qemu-img create: "),
        ("glance", {"ca_file": "{junk}"}, "glance.ca_file: {junk} cannot be used: "),
        ("glance", {"retires": 1}, "glance.retires: unknown key (did you mean glance.retries?)"),
    ],
)
async def test_what_cannot_be_used_is_named(
    folder: Path, section: str, settings: dict[str, object], sentence: str
) -> None:
    """The key stands in the sentence, and the file where it is about one."""
    junk = str(folder / "junk")
    filled = {
        key: value.replace("{junk}", junk) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    told = await refusal(folder, without_keystone(URL, **{section: filled}))
    assert sentence.replace("{junk}", junk) in told


@pytest.mark.parametrize("section", ["api", "metrics"])
async def test_address_that_is_taken_is_named(folder: Path, taken: str, section: str) -> None:
    """Two services that were given one port by mistake are told apart by the key."""
    told = await refusal(folder, without_keystone(URL, **{section: {"listen": taken}}))
    assert told.startswith(f"Error: {section}.listen: {taken}: ")
    assert "address already in use" in told


async def test_cloud_that_does_not_exist_is_named(folder: Path) -> None:
    """A cloud that no clouds.yaml describes is an error of the configuration."""
    told = await refusal(folder, {"glance": {"cloud": "nine"}})
    assert told.startswith("Error: glance.cloud 'nine' cannot be used: ")


async def test_missing_qemu_img_is_told_at_the_start(folder: Path) -> None:
    """A host without QEMU is found out before anybody asks for a disk."""
    agent = Agent(folder, without_keystone(URL, qemu={"qemu_img": "/nowhere/qemu-img"}))
    agent.write_config()
    done = await cacheagent("serve", "--config", agent.config)
    assert done.status == 1
    assert done.stderr.splitlines()[-1] == "Error: /nowhere/qemu-img is not installed"


async def test_download_that_went_on_does_not_blur_the_refusal(folder: Path, taken: str) -> None:
    """A start that fails late ends what it has begun, and loses nothing of it."""
    async with LyingGlance() as glance:
        gate = asyncio.Event()
        image_id = glance.add(b"x" * 4096)
        glance.always("data", lying_glance.held(gate))
        agent = Agent(folder, without_keystone(glance.url))
        await agent.start()
        try:
            await agent.ask("PUT", f"/v1/images/{image_id}", {})
            await agent.kill()
            told = await refusal(folder, without_keystone(glance.url, api={"listen": taken}))
            assert "address already in use" in told
            gate.set()
            await agent.start()
            pulled = await agent.ask("PUT", f"/v1/images/{image_id}", {"wait": True})
            assert (pulled.status, pulled.body["state"]) == (200, "ready")
        finally:
            await agent.close()
