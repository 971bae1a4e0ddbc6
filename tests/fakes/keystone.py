"""A Keystone v3 of a few dozen lines: tokens with an end, a catalogue, and moods."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from typing import Self

PASSWORD = "swordfish"  # noqa: S105  opens nothing but this fake
SECRET = "open sesame"  # noqa: S105  likewise


@dataclass(slots=True, kw_only=True)
class FakeKeystone:
    """The service, to be used as a context; ``url`` is what clouds.yaml calls ``auth_url``.

    ``endpoints`` are pairs of region and URL of public image services, ``key_managers`` those of
    key managers; ``lifetime`` is that of the tokens it gives, ``omits`` what it leaves out of their
    description. While ``failing`` is a status, it answers every login so; it answers none until
    ``answering``, and ``asked`` tells that one has come. ``issued`` are the tokens it gave,
    ``logins`` counts attempts. ``tls`` makes it listen under TLS.
    """

    endpoints: list[tuple[str, str]] = field(default_factory=list)
    key_managers: list[tuple[str, str]] = field(default_factory=list)
    lifetime: timedelta = timedelta(hours=1)
    omits: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None
    failing: int | None = None
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    issued: list[str] = field(default_factory=list)
    logins: int = 0
    url: str = ""
    _server: TestServer | None = None

    async def __aenter__(self) -> Self:
        self.answering.set()
        app = web.Application()
        app.router.add_get("/v3", self._version)
        app.router.add_post("/v3/auth/tokens", self._login)
        self._server = TestServer(app, scheme="https" if self.tls else "http")
        await self._server.start_server(access_log=None, ssl=self.tls)
        self.url = str(self._server.make_url("/v3"))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.answering.set()
        if self._server is not None:
            await self._server.close()

    async def _version(self, _request: web.Request) -> web.Response:
        links = [{"rel": "self", "href": self.url}]
        version = {"id": "v3.14", "status": "stable", "links": links, "media-types": []}
        return web.json_response({"version": version})

    async def _login(self, request: web.Request) -> web.Response:
        self.logins += 1
        # First: once the server closes, nothing of a request comes any more.
        login = await request.json()
        self.asked.set()
        await self.answering.wait()
        if self.failing is not None:
            return web.Response(status=self.failing, text="no")
        if not _knows(login["auth"]["identity"]):
            error = {"code": 401, "title": "Unauthorized", "message": "who are you?"}
            return web.json_response({"error": error}, status=401)
        token = f"token-{uuid.uuid4()}"
        self.issued.append(token)
        body = {"token": self._describe()}
        return web.json_response(body, status=201, headers={"X-Subject-Token": token})

    def _describe(self) -> dict[str, object]:
        issued = datetime.now(UTC)
        services = {"image": self.endpoints, "key-manager": self.key_managers}
        description: dict[str, object] = {
            "methods": ["password"],
            "user": {"id": "u", "name": "agent", "domain": {"id": "default", "name": "Default"}},
            "issued_at": issued.isoformat(),
            "expires_at": (issued + self.lifetime).isoformat(),
            "catalog": [
                {"id": kind, "type": kind, "name": kind, "endpoints": list(map(_endpoint, places))}
                for kind, places in services.items()
            ],
        }
        return {key: value for key, value in description.items() if key not in self.omits}


def _endpoint(place: tuple[str, str]) -> dict[str, str]:
    region, url = place
    return {"id": url, "interface": "public", "region_id": region, "region": region, "url": url}


def _knows(identity: object) -> bool:
    match identity:
        case {"methods": ["password"], "password": {"user": {"password": given}}}:
            return bool(given == PASSWORD)
        case {"methods": ["application_credential"], "application_credential": {"secret": given}}:
            return bool(given == SECRET)
        case _:
            return False
