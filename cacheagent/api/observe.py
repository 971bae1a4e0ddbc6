"""What becomes of a request: the answer to an error, a line in the log, a count."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from cacheagent.api.problems import reply_for
from cacheagent.api.reply import FIRST_ERROR, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aiohttp.typedefs import Handler, Middleware

    from cacheagent.api.reply import Result
    from cacheagent.metrics import Metrics

FIRST_PROBLEM = 400

CLIENT_GONE = 499
"""What the log says where the caller left before the answer; no status of a standard."""

_log = structlog.get_logger(__name__)


def observer(
    metrics: Metrics,
    *,
    operation_of: Callable[[web.Request], str | None],
    counted: Collection[str],
    streams: Collection[str] = (),
) -> Middleware:
    """Answer errors by problems, write one line for each request, and count the operations.

    ``operation_of`` names what a request asks for, None for a path that does not exist;
    operations that are not ``counted`` are somebody looking, and go to the log as debug. Those
    that are ``streams`` end well when their caller leaves, and the time until then is no time to
    answer: the histogram is not told of it.
    """

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        operation = operation_of(request)
        reply: web.StreamResponse = Reply(status=CLIENT_GONE, result="rejected")
        if operation in streams:
            reply = Reply(status=200)
        try:
            reply = await _answer(request, handler)
        finally:
            seconds = time.perf_counter() - began
            if operation is not None and operation in counted:
                timed = operation not in streams or reply.status >= FIRST_PROBLEM
                _count(metrics, operation, _result(reply), seconds if timed else None)
            quiet = operation is not None and operation not in counted
            _write(request, reply, operation, seconds, quiet=quiet)
        return reply

    return observe


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the last place where an error can become an answer
        return reply_for(error)


def _result(reply: web.StreamResponse) -> Result:
    """Give the label of a reply; what no handler of ours labelled is a success."""
    return reply.result if isinstance(reply, Reply) else "hit"


def _count(metrics: Metrics, operation: str, result: Result, seconds: float | None) -> None:
    labels = {"operation": operation, "result": result}
    metrics.requests_total.labels(**labels).inc()
    if seconds is not None:
        metrics.request_duration_seconds.labels(**labels).observe(seconds)


def _write(
    request: web.Request,
    reply: web.StreamResponse,
    operation: str | None,
    seconds: float,
    *,
    quiet: bool,
) -> None:
    told: dict[str, object] = {
        "method": request.method,
        # As it was sent: percent-encoded, so that no path can begin a line of its own.
        "path": request.rel_url.raw_path,
        "status": reply.status,
        "seconds": round(seconds, 6),
    }
    if operation is not None:
        told["operation"] = operation
    if request.remote:
        told["remote"] = request.remote
    if isinstance(reply, Reply):
        told |= {"result": reply.result}
        told |= {"problem": reply.word, "detail": reply.detail} if reply.word else {}
    level = _log.debug if quiet and reply.status < FIRST_ERROR else _log.info
    level("request", **told)
