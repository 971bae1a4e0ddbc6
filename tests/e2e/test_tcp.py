"""A daemon that is reached over TCP: under TLS, by those who have a certificate or a token."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from cacheagent.client import AsyncClient, Client
from cacheagent.errors import DaemonUnreachableError, RequestFailedError
from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.e2e.command import cacheagent
from tests.fakes.certificate import write_certificate
from tests.fakes.lying_glance import LyingGlance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BEARER = "bearer-of-a-scheduler"
UNAUTHORIZED = 401


@contextlib.asynccontextmanager
async def listening(**api: object) -> AsyncIterator[Agent]:
    """Run a daemon on some port of the loopback, beside its socket."""
    settings = without_keystone("http://127.0.0.1:9", api={"listen": "127.0.0.1:0", **api})
    async with agent_on(settings) as agent:
        yield agent


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Write the certificate of the daemon."""
    write_certificate(tmp_path / "daemon.pem")
    return tmp_path / "daemon.pem"


@pytest.fixture
def tls(certificate: Path) -> dict[str, str]:
    """Give the settings that make use of it."""
    return {"tls_cert": str(certificate), "tls_key": str(certificate)}


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    """Write a token file that lets one bearer in."""
    path = tmp_path / "tokens"
    path.write_text(f"# a scheduler\n{hashlib.sha256(BEARER.encode()).hexdigest()}\n")
    return str(path)


async def test_loopback_serves_the_same_api() -> None:
    """On its own machine the daemon is reached over TCP as over its socket, by both clients."""
    async with listening() as agent:
        url = agent.address()
        assert url.startswith("http://127.0.0.1:")
        async with AsyncClient(url) as client:
            made = await client.create_disk(
                "0a7a9a37-4b3b-4b93-9b07-9d3f0d8b3b55", "data", size_bytes=1 << 20
            )
            assert await client.instances() == [
                {"instance_id": made["instance_id"], "disks": [made]}
            ]
        instances = await asyncio.to_thread(Client(url).instances)
        assert instances[0]["disks"] == [made]
        over_socket = await agent.ask("GET", "/v1/instances")
        assert over_socket.body["instances"] == instances


async def test_tls_is_spoken_and_nothing_else(tls: dict[str, str], certificate: Path) -> None:
    """Whoever knows the certificate's authority is served; plain HTTP and strangers are not."""
    async with listening(**tls) as agent:
        url = agent.address()
        trusting = ssl.create_default_context(cafile=certificate)
        async with AsyncClient(url, tls=trusting) as client:
            assert (await client.status())["ready"]
        status = await asyncio.to_thread(Client(url, tls=trusting).status)
        assert status["ready"]
        for other in (url, url.replace("https:", "http:")):
            async with AsyncClient(other) as client:
                with pytest.raises(DaemonUnreachableError):
                    await client.status()
        assert (await agent.ask("GET", "/healthz")).status == 200


async def test_client_certificate_is_demanded(
    tls: dict[str, str], certificate: Path, tmp_path: Path
) -> None:
    """With an authority for clients, nobody is served without a certificate of it."""
    for whose in ("client", "stranger"):
        write_certificate(tmp_path / f"{whose}.pem")
    async with listening(**tls, tls_client_ca=str(tmp_path / "client.pem")) as agent:
        unknown, stranger, known = (ssl.create_default_context(cafile=certificate) for _ in "123")
        stranger.load_cert_chain(tmp_path / "stranger.pem")
        known.load_cert_chain(tmp_path / "client.pem")
        for context in (unknown, stranger):
            async with AsyncClient(agent.address(), tls=context) as client:
                with pytest.raises(DaemonUnreachableError):
                    await client.status()
        async with AsyncClient(agent.address(), tls=known) as client:
            assert (await client.status())["ready"]


async def test_bearer_token_is_demanded_over_tcp_only(tokens: str) -> None:
    """The token file guards TCP; the socket has its permissions, health tells nothing."""
    async with listening(token_file=tokens) as agent:
        url = agent.address()
        async with AsyncClient(url, bearer=BEARER) as client:
            assert await client.instances() == []
        for bearer in (None, "", BEARER[:-1], hashlib.sha256(BEARER.encode()).hexdigest()):
            stranger = Client(url, bearer=bearer)
            with pytest.raises(RequestFailedError, match="a bearer token") as refused:
                await asyncio.to_thread(stranger.instances)
            assert refused.value.status == UNAUTHORIZED
        async with aiohttp.ClientSession(url) as session:
            for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401)):
                async with session.get(path) as answer:
                    assert answer.status == status, path
        assert (await agent.ask("GET", "/v1/instances")).status == 200


async def test_command_line_speaks_to_a_guarded_daemon(tokens: str) -> None:
    """An operator on another host names the URL, and has the bearer token in the environment."""
    async with listening(token_file=tokens) as agent:
        environment = {"CACHEAGENT_SOCKET": agent.address(), "CACHEAGENT_BEARER": BEARER}
        done = await cacheagent("status", "--json", environment=environment)
        assert (done.status, done.json["ready"]) == (0, True)
        done = await cacheagent("status", environment={**environment, "CACHEAGENT_BEARER": ""})
        assert (done.status, done.stdout) == (1, "")
        assert "a bearer token of this daemon is needed" in done.stderr


async def test_tokens_and_certificates_are_read_again(
    tokens: str, tls: dict[str, str], certificate: Path
) -> None:
    """A reload takes back a token and renews a certificate, without a restart."""
    async with listening(token_file=tokens, **tls) as agent:
        old = ssl.create_default_context(cafile=certificate)
        async with AsyncClient(agent.address(), bearer=BEARER, tls=old) as client:
            assert await client.instances() == []
            Path(tokens).write_text(hashlib.sha256(b"another").hexdigest())
            write_certificate(certificate)
            agent.send(signal.SIGHUP)
            assert (await agent.told()).startswith("RELOADING=1")
            while await agent.told() != "READY=1":
                pass
            with pytest.raises(RequestFailedError, match="a bearer token"):
                await client.instances()
        async with AsyncClient(agent.address(), bearer="another", tls=old) as client:
            with pytest.raises(DaemonUnreachableError):
                await client.instances()
        new = ssl.create_default_context(cafile=certificate)
        async with AsyncClient(agent.address(), bearer="another", tls=new) as client:
            assert await client.instances() == []


async def test_who_asks_without_pause_is_slowed_down_and_nobody_else() -> None:
    """A flood over TCP gets 429; the socket's user and who watches health are served on."""
    async with listening(requests_per_second=1) as agent:
        async with aiohttp.ClientSession(agent.address()) as session:
            found = []
            for _ in range(40):
                async with session.get("/v1/status") as answer:
                    found.append(answer.status)
            assert set(found) == {200, 429}
            assert found[:4] == [200] * 4
            async with session.get("/healthz") as answer:
                assert answer.status == 200
        assert (await agent.ask("GET", "/v1/status")).status == 200
        async with AsyncClient(agent.address()) as client:
            assert (await client.status())["ready"]


async def test_address_beyond_this_machine_needs_a_guard(tls: dict[str, str]) -> None:
    """What others can reach is never served without TLS, nor without a check of who asks."""
    for api, key in (({}, "api.tls_cert"), (tls, "api.token_file")):
        settings = without_keystone("http://127.0.0.1:9", api={"listen": "0.0.0.0:0", **api})
        with pytest.raises(AssertionError, match=rf"api\.listen .* is not loopback: set .*{key}"):
            async with agent_on(settings):
                pass


async def test_keystone_token_can_be_demanded() -> None:
    """With api.require_token nobody is served without saying for whom, over the socket neither."""
    async with (
        LyingGlance() as glance,
        agent_on(
            without_keystone(glance.url, api={"listen": "127.0.0.1:0", "require_token": True})
        ) as agent,
    ):
        answer = await agent.ask("GET", "/v1/instances")
        assert (answer.status, answer.problem) == (401, "unauthenticated")
        answer = await agent.ask("GET", "/v1/instances", headers={"X-Auth-Token": "tenant"})
        assert answer.status == 200
        with pytest.raises(RequestFailedError) as refused:
            await asyncio.to_thread(Client(agent.address()).instances)
        assert refused.value.status == UNAUTHORIZED
        assert (await agent.ask("GET", "/readyz")).status == 200


async def test_operator_steers_where_a_token_is_demanded() -> None:
    """The daemon's own user pins over the socket without a token; over TCP nobody does."""
    async with (
        LyingGlance() as glance,
        agent_on(
            without_keystone(glance.url, api={"listen": "127.0.0.1:0", "require_token": True})
        ) as agent,
    ):
        image_id = glance.add(b"data" * 1024)
        path, headers = f"/v1/images/{image_id}", {"X-Auth-Token": "tenant"}
        answer = await agent.ask("PUT", path, {"wait": True}, headers=headers)
        assert answer.status == 200
        assert (await agent.ask("PUT", f"{path}/pin", headers=headers)).problem == "operator-only"
        assert (await agent.ask("PUT", f"{path}/pin")).status == 204
        assert (await agent.ask("POST", "/v1/prune", {})).status == 200
        with pytest.raises(RequestFailedError) as refused:
            await asyncio.to_thread(Client(agent.address()).pin, image_id)
        assert refused.value.status == UNAUTHORIZED
        assert (await agent.ask("GET", path)).status == UNAUTHORIZED


async def test_metrics_listener_serves_three_paths() -> None:
    """Whoever scrapes the metrics reaches neither disks nor images by the same address."""
    settings = without_keystone("http://127.0.0.1:9", metrics={"listen": "127.0.0.1:0"})
    async with agent_on(settings) as agent, aiohttp.ClientSession() as session:
        found = {}
        for path in ("/metrics", "/healthz", "/readyz", "/", "/v1/status", "/openapi.json"):
            async with session.get(f"{agent.address('metrics')}{path}") as answer:
                found[path] = answer.status
                if path == "/metrics":
                    assert "cacheagent_build_info{" in await answer.text()
    assert [path for path, status in found.items() if status == 200] == [
        *("/metrics", "/healthz", "/readyz")
    ]
    assert set(found.values()) == {200, 404}


async def test_caller_who_says_nothing_keeps_nobody_waiting(tls: dict[str, str]) -> None:
    """A connection over which no TLS comes holds up neither others nor the stop."""
    async with listening(**tls) as agent:
        host, _, port = agent.address().removeprefix("https://").partition(":")
        with socket.create_connection((host, int(port))):
            assert (await agent.ask("GET", "/healthz")).status == 200
            assert await agent.stop() == 0
