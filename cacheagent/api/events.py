"""The stream of events, as server-sent events (HTML, section 9.2).

Each connection follows the bounded memory of the latest events at its own pace: what it does not
take in time is dropped there, and it is told so. Nothing piles up for it here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web

from cacheagent.api import convert, reading, requestid
from cacheagent.api.context import SERVICES, STREAMS
from cacheagent.api.problems import reply_for
from cacheagent.errors import ProblemError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cacheagent.service.events import Event

_log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that neither side takes it for a loss."""

_BEGINNING = b"retry: 1000\n\n"
"""Sent at once: who reads it knows that it misses nothing from here on. A second until again."""

_BEAT = b":\n\n"


async def stream(request: web.Request) -> web.StreamResponse:
    """Tell what happens until the caller goes away or the daemon stops."""
    after, caller = reading.last_event_id(request), reading.caller(request)
    response = web.StreamResponse(headers=_headers())
    if request.method == hdrs.METH_HEAD:
        return response
    streams, task = request.app[STREAMS], asyncio.current_task()
    async with aclosing(request.app[SERVICES].events.follow(after, caller)) as events:
        if task is not None:
            streams.add(task)
        try:
            await response.prepare(request)
            await _pour(events, response)
        except ConnectionError:
            pass  # the caller went away: that is how a stream ends
        except ProblemError as error:
            await _end(response, error)
        except Exception:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            streams.discard(task)
    return response


async def end_streams(app: web.Application) -> None:
    """End the streams whose callers do not read: closing waits for nobody."""
    for task in app[STREAMS]:
        task.cancel()


async def _pour(events: AsyncGenerator[Event, None], response: web.StreamResponse) -> None:
    """Write each event when it comes, and a comment where none comes for long."""
    await response.write(_BEGINNING)
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({coming}, timeout=HEARTBEAT))[0]:
                await response.write(_BEAT)
        finally:
            # Nobody else may close the generator while it runs.
            coming.cancel()
            await asyncio.wait({coming})
        if (event := coming.result()) is None:
            return
        await response.write(_encoded(event))


async def _end(response: web.StreamResponse, error: ProblemError) -> None:
    """Tell the problem as an event: an answer that has begun cannot become one."""
    _log.info("a stream of events ended", word=error.word, why=str(error))
    document = (reply_for(error).text or "").encode()
    with contextlib.suppress(ConnectionError):
        await response.write(b"event: problem\ndata: " + document + b"\n\n")


def _encoded(event: Event) -> bytes:
    data = json.dumps(convert.event(event))
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _headers() -> dict[str, str]:
    # These are on their way before the middleware could add its own.
    echoed = dict.fromkeys(requestid.HEADERS, requestid.current())
    return {hdrs.CONTENT_TYPE: MEDIA_TYPE, hdrs.CACHE_CONTROL: "no-store", **echoed}
