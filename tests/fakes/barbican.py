"""A key manager with the one route that is asked for: the payload of a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.test_utils import TestServer

if TYPE_CHECKING:
    from typing import Self


@dataclass(slots=True, kw_only=True)
class FakeBarbican:
    """The service, to be used as a context; ``url`` is what the catalogue says.

    ``secrets`` are contents with the type that each was stored as; ``owners`` are the tokens that
    may have a secret, where not everybody may; tokens that are not ``known`` are answered 401.
    While ``failing`` is a status, it answers all with that. ``asked`` are the secrets that were
    asked for, with the token.
    """

    secrets: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=dict)
    known: set[str] | None = None
    failing: int | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    _server: TestServer | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v1/secrets/{secret_id}/payload", self._payload)
        self._server = TestServer(app)
        await self._server.start_server(access_log=None)
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._server is not None:
            await self._server.close()

    async def _payload(self, request: web.Request) -> web.Response:
        secret_id, token = request.match_info["secret_id"], request.headers["X-Auth-Token"]
        self.asked.append((secret_id, token))
        if self.failing is not None:
            return web.Response(status=self.failing, headers={"Location": "http://elsewhere.test"})
        if self.known is not None and token not in self.known:
            return web.Response(status=401)
        if secret_id not in self.secrets:
            return web.Response(status=404)
        if token not in self.owners.get(secret_id, {token}):
            return web.Response(status=403)
        media_type, content = self.secrets[secret_id]
        if request.headers["Accept"] != media_type:
            return web.Response(status=406)
        return web.Response(body=content, content_type=media_type)
