"""Where the API may be reached, whoever opened the socket."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, web

from cacheagent.api import listen
from cacheagent.config import ApiConfig
from cacheagent.errors import ConfigError
from tests.fakes.certificate import write_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

EVERYWHERE = "0.0.0.0"  # noqa: S104 -- it is bound, and nobody listens


@pytest.fixture
async def runner() -> AsyncIterator[web.AppRunner]:
    """Give an application that knows no path."""
    started = await listen.start(web.Application())
    yield started
    await started.cleanup()


@contextlib.contextmanager
def passed(family: socket.AddressFamily, host: str) -> Iterator[socket.socket]:
    """Bind a socket as the service manager would."""
    with socket.socket(family) as opened:
        opened.bind((host, 0))
        yield opened


@pytest.mark.parametrize("guards", [{}, {"tls_cert", "tls_key"}])
async def test_a_passed_socket_that_others_reach_needs_a_guard(
    runner: web.AppRunner, tmp_path: Path, guards: set[str]
) -> None:
    """What systemd opens to the network is not served without TLS, nor without who may ask."""
    write_certificate(tmp_path / "pem")
    config = ApiConfig.model_validate(dict.fromkeys(guards, tmp_path / "pem"))
    tls = await listen.tls_context(config)
    with (
        passed(socket.AF_INET, EVERYWHERE) as opened,
        pytest.raises(ConfigError, match=r"passed socket 0\.0\.0\.0:\d+ is not loopback: set"),
    ):
        await listen.listen_passed(runner, opened, config, tls)
    assert runner.addresses == []


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
async def test_a_passed_socket_of_the_loopback_is_served(
    runner: web.AppRunner, family: socket.AddressFamily, host: str
) -> None:
    """What this machine alone reaches needs no guard, as with api.listen."""
    with passed(family, host) as opened:
        await listen.listen_passed(runner, opened.dup(), ApiConfig(), None)
        (url,) = listen.addresses(runner)
        async with ClientSession() as session, session.get(url) as answer:
            assert answer.status == 404


async def test_a_passed_socket_of_another_kind_is_refused(runner: web.AppRunner) -> None:
    """What nobody has thought about is not served."""
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as opened,
        pytest.raises(ConfigError, match="AF_NETLINK, not Unix nor TCP"),
    ):
        await listen.listen_passed(runner, opened, ApiConfig(), None)
