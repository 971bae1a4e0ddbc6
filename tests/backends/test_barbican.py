"""Certificates from the key manager: whose token gets them, and what its answers mean."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.barbican import LONGEST, Barbican, BarbicanSettings
from cacheagent.errors import GlanceUnavailableError
from cacheagent.model import Caller
from tests.fakes.barbican import FakeBarbican

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

OWN = "token-of-the-agent"
ID = str(uuid.uuid4())
NOBODY = Caller()
TENANT = Caller(token="token-of-a-tenant")  # noqa: S106  opens nothing


class Identity:
    """An agent with a token, in a cloud with these key managers."""

    def __init__(self, *urls: str, own: str = OWN) -> None:
        self._urls = urls
        self.own = own

    async def key_managers(self) -> Sequence[str]:
        """Give the addresses."""
        return self._urls

    async def token(self) -> str | None:
        """Give the token."""
        return self.own

    async def renew(self, refused: str) -> str | None:
        """Give a newer one."""
        assert refused == self.own
        return OWN


@pytest.fixture
async def keys() -> AsyncIterator[FakeBarbican]:
    """Run a key manager with one secret."""
    async with FakeBarbican(secrets={ID: ("application/octet-stream", b"a certificate")}) as fake:
        yield fake


async def ask(*urls: str, caller: Caller = NOBODY) -> bytes | None:
    """Ask the key managers at these addresses for the secret."""
    async with Barbican(BarbicanSettings(timeout=10), Identity(*urls)) as barbican:
        return await barbican.certificate(ID, caller)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_certificate_comes_with_the_agents_token(keys: FakeBarbican, path: str) -> None:
    """The catalogue may name the version of the API or not."""
    assert await ask(keys.url + path) == b"a certificate"
    assert keys.asked == [(ID, OWN)]


async def test_secret_may_be_stored_as_text(keys: FakeBarbican) -> None:
    """A key manager gives a secret only as what it was stored as, so both are asked for."""
    keys.secrets[ID] = ("text/plain", b"a certificate")
    assert await ask(keys.url) == b"a certificate"


async def test_certificate_of_a_tenant_comes_with_the_tenants_token(keys: FakeBarbican) -> None:
    """What the agent may not see, the caller's own token may open."""
    assert TENANT.token is not None
    keys.owners[ID] = {TENANT.token}
    assert await ask(keys.url, caller=TENANT) == b"a certificate"
    assert await ask(keys.url) is None


async def test_unknown_secret_is_none(keys: FakeBarbican) -> None:
    """Nobody knows it, or there is no key manager at all: that is an answer, and no failure."""
    keys.secrets.clear()
    assert await ask(keys.url, caller=TENANT) is None
    assert await ask() is None


@pytest.mark.parametrize("status", [302, 500, 503])
async def test_key_manager_that_fails_is_told(keys: FakeBarbican, status: int) -> None:
    """A server error passes, and a redirect is not followed: it would carry the token away."""
    keys.failing = status
    with pytest.raises(GlanceUnavailableError, match=f"it answers {status}"):
        await ask(keys.url)


async def test_agent_that_is_not_known_is_told(keys: FakeBarbican) -> None:
    """A token that is not accepted says nothing of the secret; a tenant's own may still open it."""
    assert TENANT.token is not None
    keys.known = {TENANT.token}
    with pytest.raises(GlanceUnavailableError, match="does not accept the token of the agent"):
        await ask(keys.url)
    assert await ask(keys.url, caller=TENANT) == b"a certificate"
    keys.owners[ID] = set()
    with pytest.raises(GlanceUnavailableError, match="does not accept the token of the agent"):
        await ask(keys.url, caller=TENANT)


async def test_token_that_was_revoked_is_renewed(keys: FakeBarbican) -> None:
    """A token that ended before its time costs one more question, and no image."""
    keys.known = {OWN}
    identity = Identity(keys.url, own="revoked")
    async with Barbican(BarbicanSettings(timeout=10), identity) as barbican:
        assert await barbican.certificate(ID, NOBODY) == b"a certificate"
    assert [token for _, token in keys.asked] == ["revoked", OWN]


async def test_caller_that_is_not_known_gets_none(keys: FakeBarbican) -> None:
    """The agent is known and may not see it; what the caller sends instead opens nothing."""
    keys.known, keys.owners[ID] = {OWN}, set()
    assert await ask(keys.url, caller=TENANT) is None


async def test_key_manager_that_is_away_is_told(keys: FakeBarbican, unused_tcp_port: int) -> None:
    """One that cannot be reached is no refusal of the image; another one may answer for it."""
    away = f"http://127.0.0.1:{unused_tcp_port}"
    with pytest.raises(GlanceUnavailableError, match="cannot be asked"):
        await ask(away)
    assert await ask(away, keys.url) == b"a certificate"


async def test_endless_secret_is_not_read_to_its_end(keys: FakeBarbican) -> None:
    """No certificate is so long; memory is not spent on it."""
    keys.secrets[ID] = ("application/octet-stream", bytes(LONGEST + 1))
    with pytest.raises(GlanceUnavailableError, match="more than"):
        await ask(keys.url)
