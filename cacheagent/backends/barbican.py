"""The key manager of OpenStack, for the one thing that is asked of it: a certificate by its id."""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import aiohttp

from cacheagent.errors import ConfigError, GlanceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from cacheagent.model import Caller

MEDIA_TYPES = ("application/octet-stream", "text/plain")
"""What a secret may be stored as; Barbican answers 406 to a request for the other one."""

LONGEST = 1 << 20
"""Bytes of a certificate with those behind it, at the most."""

_ABSENT = {
    *(HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND),
    *(HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.BAD_REQUEST),
}
"""Answers that say that the secret is not there, or not for this token."""


class KeyIdentity(Protocol):
    """What an identity gives: where the key managers are, and the agent's token.

    All raise ``GlanceUnavailableError`` and ``GlanceRefusedError`` as Keystone does not answer,
    or refuses.
    """

    async def key_managers(self) -> Sequence[str]:
        """Give the base URLs of the key managers, in order of preference."""
        ...

    async def token(self) -> str | None:
        """Give the agent's own token."""
        ...

    async def renew(self, refused: str) -> str | None:
        """Give a newer token than the one that was not accepted."""
        ...


class _NotAcceptedError(aiohttp.ClientError):
    """A token is answered 401: nothing is said of the secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarbicanSettings:
    """Seconds to connect and for a whole answer; what replaces the system's authorities."""

    connect_timeout: float = 10.0
    timeout: float = 60.0
    ca_file: Path | None = None


class Barbican:
    """A client of the key manager, to be used as a context."""

    def __init__(self, settings: BarbicanSettings, identity: KeyIdentity) -> None:
        self._settings = settings
        self._identity = identity
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        ca_file = self._settings.ca_file
        trust = True if ca_file is None else await asyncio.to_thread(_trust, ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust),
            timeout=aiohttp.ClientTimeout(
                total=self._settings.timeout, sock_connect=self._settings.connect_timeout
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "cacheagent"},
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def certificate(self, secret_id: str, caller: Caller) -> bytes | None:
        """Give the certificate as it is stored; None where nobody has it, or gives it to us.

        The agent's own token is tried first: an operator's certificates are for all tenants. Then
        the caller's, who may have brought a certificate along.

        Raises:
            GlanceUnavailableError: no key manager answers, or none accepts the agent's token.
            GlanceRefusedError: Keystone does not accept the agent.

        """
        failure = None
        for url in await self._identity.key_managers():
            root = re.sub(r"/v1$", "", url.rstrip("/"))
            try:
                found = await self._ask(f"{root}/v1/secrets/{secret_id}/payload", caller)
                if found is not None:
                    return found
            except (aiohttp.ClientError, OSError) as error:
                why = str(error) or type(error).__name__
                failure = f"the key manager at {url} cannot be asked: {why}"
        if failure is not None:
            raise GlanceUnavailableError(failure)
        return None

    async def _ask(self, url: str, caller: Caller) -> bytes | None:
        fault = found = None
        try:
            found = await self._ask_as_agent(url)
        except _NotAcceptedError:
            # A key manager that knows nobody's token, or an agent without its rights.
            fault = aiohttp.ClientError("it does not accept the token of the agent")
        if found is None:
            with suppress(_NotAcceptedError):
                found = await self._ask_with(url, caller.token)
        if found is None and fault is not None:
            raise fault
        return found

    async def _ask_as_agent(self, url: str) -> bytes | None:
        token = await self._identity.token()
        try:
            return await self._ask_with(url, token)
        except _NotAcceptedError:
            # Tokens may be revoked before their end.
            return await self._ask_with(url, await self._identity.renew(token or ""))

    async def _ask_with(self, url: str, token: str | None) -> bytes | None:
        if token is None or not re.fullmatch(r"[\x21-\x7e]+", token):
            return None
        for media_type in MEDIA_TYPES:
            found = await self._get(url, {"X-Auth-Token": token, "Accept": media_type})
            if found is not None:
                return found
        return None

    async def _get(self, url: str, headers: dict[str, str]) -> bytes | None:
        if self._session is None:
            raise RuntimeError("the key manager is used before start")
        # A redirect would carry the token on to whatever origin it names.
        async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status == HTTPStatus.UNAUTHORIZED:
                raise _NotAcceptedError
            if answer.status in _ABSENT:
                return None
            if answer.status != HTTPStatus.OK:
                raise aiohttp.ClientPayloadError(f"it answers {answer.status}")
            data = bytearray()
            async for piece in answer.content.iter_any():
                data += piece
                if len(data) > LONGEST:
                    raise aiohttp.ClientPayloadError(f"it sends more than {LONGEST} bytes")
            return bytes(data)


def _trust(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"glance.ca_file: {ca_file} cannot be used: {error}") from error
