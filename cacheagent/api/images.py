"""Handlers of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.api import convert, reading
from cacheagent.api.context import SERVICES
from cacheagent.api.reply import RESULTS, Reply, empty_reply, json_reply, list_reply
from cacheagent.api.requests import PrefetchRequest
from cacheagent.model import ImageState

if TYPE_CHECKING:
    from aiohttp import web


async def list_images(request: web.Request) -> Reply:
    """Give every image that is cached or coming."""
    views = request.app[SERVICES].images.list_images(reading.caller(request))
    return await list_reply("images", (convert.image(view) async for view in views))


async def show(request: web.Request) -> Reply:
    """Give one image."""
    view = await request.app[SERVICES].images.show(
        reading.image_id(request), reading.caller(request)
    )
    return json_reply(200, convert.image(view))


async def prefetch(request: web.Request) -> Reply:
    """Bring the image in."""
    image_id, caller = reading.image_id(request), reading.caller(request)
    wanted = await reading.body(request, PrefetchRequest, required=False)
    view, found = await request.app[SERVICES].images.prefetch(
        image_id, caller, pin=wanted.pin, wait=wanted.wait
    )
    return json_reply(
        200 if view.state is ImageState.READY else 202,
        convert.image(view),
        result=RESULTS[found],
    )


async def why(request: web.Request) -> Reply:
    """Say why the image stays, or when it goes."""
    found = await request.app[SERVICES].operator.why(
        reading.image_id(request), reading.caller(request)
    )
    return json_reply(200, convert.why(found))


async def verify(request: web.Request) -> Reply:
    """Read the base of the image again, and compare its digest."""
    image_id = reading.image_id(request)
    done = await request.app[SERVICES].verify.verify(image_id, reading.caller(request))
    return json_reply(200, convert.verification(image_id, done))


async def evict(request: web.Request) -> Reply:
    """Evict the base of the image now."""
    await request.app[SERVICES].images.evict(reading.image_id(request), reading.caller(request))
    return empty_reply()


async def pin(request: web.Request) -> Reply:
    """Keep the image until it is unpinned."""
    await request.app[SERVICES].images.pin(reading.image_id(request), reading.caller(request))
    return empty_reply()


async def unpin(request: web.Request) -> Reply:
    """Keep the image no longer than any other."""
    await request.app[SERVICES].images.unpin(reading.image_id(request), reading.caller(request))
    return empty_reply()
