"""What the handlers find in the application."""

from __future__ import annotations

import asyncio

from aiohttp import web

from cacheagent.api.page import Page
from cacheagent.api.services import Services, StatusService
from cacheagent.metrics import Metrics

SERVICES = web.AppKey("services", Services)
STATUS = web.AppKey("status", StatusService)
METRICS = web.AppKey("metrics", Metrics)
DESCRIPTION = web.AppKey("description", bytes)
PAGE = web.AppKey("page", Page)
STREAMS = web.AppKey("streams", set[asyncio.Task[object]])
"""The requests that stream now."""
