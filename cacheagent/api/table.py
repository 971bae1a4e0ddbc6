"""The shape of a route: all that the router and the OpenAPI document need to know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web

from cacheagent.api.requests import Request
from cacheagent.api.wire import Answer
from cacheagent.errors import ProblemError

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
"""Gives a ``Reply``, but for a route that is a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a route reads: the model, and whether it may be left out."""

    model: type[Request]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """One answer that is no problem: JSON of ``model``, else text of ``media_type``, else nothing.

    ``headers`` maps the headers of this answer to what they say.
    """

    description: str
    model: type[Answer] | None = None
    media_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A method and a path, what handles them, what goes in and what comes out.

    ``operation`` is the name in the metrics, in the log and in the OpenAPI document. ``headers``
    maps request headers of this route alone to what they do; ``problems`` are those that are
    not common to all routes. ``stream``: its answer goes on until somebody ends it.
    """

    operation: str
    method: str
    path: str
    summary: str
    handler: Handler
    answers: Mapping[int, Success]
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[type[ProblemError], ...] = ()
    stream: bool = False
