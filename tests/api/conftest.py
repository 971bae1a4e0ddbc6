"""The API over fake services, on a server on loopback."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from aiohttp import ClientSession

from cacheagent.api import listen
from cacheagent.api.app import create_app
from cacheagent.api.server import Bounds, HttpServer
from cacheagent.configtypes import HostPort
from cacheagent.metrics import Metrics
from cacheagent.sync.precedence import Precedence
from tests.api.answers import check
from tests.fakes.services import FakeServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from aiohttp import ClientResponse, web


ROOMY = Bounds(connections=64)
"""What bounds no test that does not look for bounds."""


class Ask(Protocol):
    """Ask the API, and hold the answer to the OpenAPI document."""

    async def __call__(self, method: str, path: str, **kwargs: Any) -> ClientResponse:  # noqa: ANN401 - aiohttp's own
        """Give the answer, read."""
        ...


class Serve(Protocol):
    """Serve the API with options of its own."""

    def __call__(self, **options: Any) -> AbstractAsyncContextManager[Ask]:  # noqa: ANN401 - create_app's own
        """Give the means to ask it."""
        ...


@asynccontextmanager
async def served(
    app: web.Application,
    bounds: Bounds = ROOMY,
    metrics: Metrics | None = None,
    precedence: Precedence | None = None,
) -> AsyncIterator[str]:
    """Serve ``app`` on loopback, and give its URL."""
    server = await HttpServer.start(app, bounds, metrics or Metrics(), precedence or Precedence())
    try:
        port = await listen.listen_tcp(server, HostPort("127.0.0.1", 0), "api.listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.close()


@asynccontextmanager
async def asking(app: web.Application) -> AsyncIterator[Ask]:
    """Serve ``app`` as the daemon does."""
    async with served(app) as url, ClientSession(url) as client:

        async def ask(method: str, path: str, **kwargs: Any) -> ClientResponse:  # noqa: ANN401 - aiohttp's own
            answer = await client.request(method, path, **kwargs)
            await answer.read()
            await check(method, answer)
            return answer

        yield ask


@pytest.fixture
def services() -> FakeServices:
    """Give services that answer with what the test puts in."""
    return FakeServices()


@pytest.fixture
def metrics() -> Metrics:
    """Give metrics that nothing was counted in."""
    return Metrics()


@pytest.fixture
def serve(services: FakeServices, metrics: Metrics) -> Serve:
    """Give the means to serve the API with options."""

    def run(**options: Any) -> AbstractAsyncContextManager[Ask]:  # noqa: ANN401 - create_app's own
        return asking(create_app(services.bundle, metrics, **options))

    return run


@pytest.fixture
async def ask(serve: Serve) -> AsyncIterator[Ask]:
    """Serve the API without options, and ask it."""
    async with serve() as ask:
        yield ask
