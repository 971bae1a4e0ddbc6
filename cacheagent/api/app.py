"""The aiohttp applications: the API, and the small one of the metrics listener.

Both want ``handler_cancellation=True`` and ``access_log=None`` from whoever runs them: a caller
that goes away cancels its handler, and every request is logged here already.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from cacheagent.api import events, form, openapi, page, reading
from cacheagent.api.context import DESCRIPTION, METRICS, PAGE, SERVICES, STATUS, STREAMS
from cacheagent.api.guards import api_guard, bearer_guard, rate_guard
from cacheagent.api.observe import observer
from cacheagent.api.requestid import with_request_id
from cacheagent.api.routes import METRICS_APP_ROUTES, ROUTES
from cacheagent.errors import OperatorOnlyError
from cacheagent.metrics import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiohttp.typedefs import Handler, Middleware

    from cacheagent.api.services import Services, StatusService
    from cacheagent.api.table import Route
    from cacheagent.metrics import Metrics
    from cacheagent.sync.rates import Rates


def create_app(
    services: Services,
    metrics: Metrics,
    *,
    require_token: bool = False,
    bearers: Callable[[], frozenset[bytes] | None] = lambda: None,
    rates: Rates | None = None,
) -> web.Application:
    """Build the API.

    With ``require_token`` every request to ``/v1/`` must bear a Keystone token, but for those by
    which root and the daemon's own user steer the cache over a Unix socket. Where ``bearers``
    gives SHA-256 digests, as ``guards.parse_digests`` reads them, connections over TCP must bear
    one of those tokens; those over a Unix socket need none. ``rates`` bound how often a peer may
    ask.
    """
    counted = [] if rates is None else [rate_guard(rates)]
    guards = [
        *counted,
        form.guard,
        bearer_guard(bearers),
        api_guard(
            services.status,
            services.access,
            require_token=require_token,
            steering=_steering(ROUTES),
        ),
    ]
    app = _application(ROUTES, metrics, services.status, guards)
    app[SERVICES] = services
    app[DESCRIPTION] = json.dumps(openapi.document(ROUTES)).encode()
    app[STREAMS] = set()
    app.on_startup.append(_load_page)
    app.on_shutdown.append(events.end_streams)
    return app


def _steering(routes: Iterable[Route]) -> frozenset[tuple[str, str]]:
    """Give what a token may be refused because it is one."""
    return frozenset(
        (each.method, each.path) for each in routes if OperatorOnlyError in each.problems
    )


def create_metrics_app(status: StatusService, metrics: Metrics) -> web.Application:
    """Build what ``metrics.listen`` serves: ``/metrics``, ``/healthz`` and ``/readyz`` only."""
    return _application(METRICS_APP_ROUTES, metrics, status, [])


def _application(
    routes: Sequence[Route],
    metrics: Metrics,
    status: StatusService,
    guards: Iterable[Middleware],
) -> web.Application:
    handlers = [(route, _handler(route)) for route in routes]
    operations = {handler: route.operation for route, handler in handlers}
    observe = observer(
        metrics,
        operation_of=lambda request: operations.get(request.match_info.handler),
        counted=frozenset(OPERATIONS),
        streams=frozenset(route.operation for route in routes if route.stream),
    )
    app = web.Application(
        client_max_size=reading.MAX_BODY, middlewares=[with_request_id, observe, *guards]
    )
    app[STATUS], app[METRICS] = status, metrics
    for route, handler in handlers:
        # What can be got can be asked for by HEAD (RFC 9110, section 9.1).
        get = route.method == "GET"
        add = app.router.add_get if get else partial(app.router.add_route, route.method)
        add(route.path, handler, expect_handler=reading.expect_later)
    return app


def _handler(route: Route) -> Handler:
    """Give the route's handler, which refuses a body where the route takes none."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if route.body is None:
            await reading.refuse_body(request)
        return await route.handler(request)

    return handle


async def _load_page(app: web.Application) -> None:
    app[PAGE] = await asyncio.to_thread(page.load)
