"""Handlers of the agent itself: prune, status, health, metrics, description, status page."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import hdrs

from cacheagent.api import convert, reading, wire
from cacheagent.api.context import DESCRIPTION, METRICS, PAGE, SERVICES, STATUS
from cacheagent.api.reply import Reply, json_reply, long_reply
from cacheagent.api.requests import PruneRequest

if TYPE_CHECKING:
    from aiohttp import web


async def prune(request: web.Request) -> Reply:
    """Make one pass of eviction, or tell its plan."""
    caller = reading.caller(request)
    wanted = await reading.body(request, PruneRequest, required=False)
    done = await request.app[SERVICES].operator.prune(
        caller, dry_run=wanted.dry_run, free_bytes=wanted.free_bytes
    )
    return long_reply(convert.pruned(done), "stay", map(convert.staying, done.stay))


async def status(request: web.Request) -> Reply:
    """Give the agent at a glance."""
    caller = reading.caller(request)
    return json_reply(200, convert.status(await request.app[SERVICES].status.status(caller)))


async def healthz(_request: web.Request) -> Reply:
    """Say that the loop turns: who gets this answer knows it."""
    return json_reply(200, wire.Health(alive=True))


async def readyz(request: web.Request) -> Reply:
    """Say whether requests can be served."""
    agent = request.app[STATUS]
    ready = agent.ready and not agent.stopping
    return json_reply(
        200 if ready else 503, wire.Readiness(ready=agent.ready, stopping=agent.stopping)
    )


async def metrics(request: web.Request) -> Reply:
    """Give all metrics, with gauges as of now."""
    await request.app[STATUS].refresh_metrics()
    shown = request.app[METRICS]
    return Reply(
        status=200,
        body=await asyncio.to_thread(shown.render),
        headers={hdrs.CONTENT_TYPE: shown.content_type},
    )


async def description(request: web.Request) -> Reply:
    """Give the OpenAPI document."""
    return Reply(status=200, body=request.app[DESCRIPTION], content_type="application/json")


async def page(request: web.Request) -> Reply:
    """Give the status page."""
    shown = request.app[PAGE]
    return Reply(status=200, body=shown.html, headers=shown.headers)
