"""Requests go before downloads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from cacheagent.sync import precedence
from cacheagent.sync.precedence import Precedence
from tests.api.conftest import served
from tests.fakes.longwork import StandingClock, waits

if TYPE_CHECKING:
    import pytest


async def test_what_makes_something_goes_first_until_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Downloads wait from its first byte on, and go on behind its answer; who only looks waits."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one, seen = Precedence(StandingClock()), list[bool]()

    async def look(_request: web.Request) -> web.Response:
        seen.append(await waits(one))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/", look)
    async with served(app, precedence=one) as url, aiohttp.ClientSession() as client:
        for method in ("PUT", "PUT", "GET"):
            async with client.request(method, url) as answer:
                await answer.read()
            await one.give_way()
    assert seen == [True, True, False]


async def test_whoever_leaves_keeps_no_download_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks within a request gives its precedence back."""
    monkeypatch.setattr(precedence, "PATIENCE", 600.0)
    one, come = Precedence(StandingClock()), asyncio.Event()

    async def stay(_request: web.Request) -> web.Response:
        come.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_put("/", stay)
    async with served(app, precedence=one) as url:
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await come.wait()
        assert await waits(one)
        writer.close()
        await one.give_way()
