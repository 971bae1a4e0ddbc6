"""The OpenAPI 3.1 document, built from the table of routes and the models of the wire."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

import cacheagent
from cacheagent.api import problemdocs, requestid
from cacheagent.api.guards import API_PREFIX, OPEN_PATHS, UNCOUNTED_PATHS
from cacheagent.api.problems import MEDIA_TYPE
from cacheagent.api.reading import EVENT_HEADER, EVENT_ID_PATTERN, TOKEN_HEADER, TOKEN_PATTERN
from cacheagent.errors import (
    GlanceRefusedError,
    GlanceUnavailableError,
    InvalidRequestError,
    ProblemError,
    RetryLaterError,
    ShuttingDownError,
    TooManyRequestsError,
    UnauthenticatedError,
)
from cacheagent.model import DISK_NAME_PATTERN, UUID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

    from cacheagent.api.table import Route, Success

Json = dict[str, Any]

COMMON_PROBLEMS = (
    *(InvalidRequestError, UnauthenticatedError, TooManyRequestsError, ShuttingDownError),
    *(GlanceRefusedError, GlanceUnavailableError),
    ProblemError,
)
"""What every path of the API can answer, whatever it does."""

_UUID = {"type": "string", "format": "uuid", "pattern": f"^{UUID_PATTERN}$"}
_PATH_PARAMETERS: Mapping[str, tuple[str, Json]] = {
    "instance_id": ("The UUID of the instance.", _UUID),
    "image_id": ("The UUID of the image in Glance.", _UUID),
    "name": ("The name of the disk.", {"type": "string", "pattern": f"^{DISK_NAME_PATTERN}$"}),
}
_HEADER_PATTERNS: Mapping[str, str] = {
    TOKEN_HEADER: f"^{TOKEN_PATTERN}$",
    EVENT_HEADER: f"^{EVENT_ID_PATTERN}$",
}
"""Of headers that are refused in any other form."""

_REQUEST_ID = "The id of the request: logged and echoed; Glance gets it if it is a UUID."
_REF = "#/components/schemas/{model}"


def document(routes: Sequence[Route]) -> Json:
    """Give the document for ``routes``, as JSON values."""
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cacheagent",
            "version": cacheagent.__version__,
            "summary": "Instance disks from Glance images, each image downloaded once.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The daemon that serves this document."}],
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {"schemas": _schemas(routes), "securitySchemes": _security_schemes()},
    }


def problems_of(route: Route) -> tuple[type[ProblemError], ...]:
    """Give every problem that the route can answer."""
    if route.path.startswith(API_PREFIX):
        return tuple(dict.fromkeys((*COMMON_PROBLEMS, *route.problems)))
    guarded = () if route.path in OPEN_PATHS else (UnauthenticatedError,)
    counted = () if route.path in UNCOUNTED_PATHS else (TooManyRequestsError,)
    return (InvalidRequestError, *guarded, *counted, ProblemError, *route.problems)


def _schemas(routes: Sequence[Route]) -> Json:
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for route in routes:
        if route.body is not None:
            models[route.body.model, "validation"] = None
        for success in route.answers.values():
            if success.model is not None:
                models[success.model, "serialization"] = None
        for error in problems_of(route):
            models[problemdocs.MODELS[error], "serialization"] = None
    _, schema = models_json_schema(list(models), ref_template=_REF)
    found: Json = schema["$defs"]
    return found


def _security_schemes() -> Json:
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "Over TCP, where the operator has configured tokens.",
        }
    }


def _operation(route: Route) -> Json:
    described: Json = {
        "operationId": route.operation,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_header_parameters(route)],
        "responses": _responses(route),
    }
    if route.body is not None:
        described["requestBody"] = {
            "required": route.body.required,
            "content": {"application/json": {"schema": _ref(route.body.model)}},
        }
    return described


def _path_parameters(route: Route) -> list[Json]:
    parameters = []
    for name in re.findall(r"{(\w+)}", route.path):
        text, schema = _PATH_PARAMETERS[name]
        parameters.append(
            {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
        )
    return parameters


def _header_parameters(route: Route) -> list[Json]:
    headers = dict.fromkeys(requestid.HEADERS, _REQUEST_ID)
    if route.path.startswith(API_PREFIX):
        headers[TOKEN_HEADER] = "The tenant's Keystone token, checked against Glance."
    return [
        {"name": name, "in": "header", "description": text, "schema": _header_schema(name)}
        for name, text in {**headers, **route.headers}.items()
    ]


def _header_schema(name: str) -> Json:
    pattern = _HEADER_PATTERNS.get(name)
    return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}


def _responses(route: Route) -> Json:
    responses = {str(status): _success(success) for status, success in route.answers.items()}
    by_status = sorted(problems_of(route), key=lambda error: error.status)
    for status, errors in groupby(by_status, key=lambda error: error.status):
        responses[str(status)] = _problem(list(errors))
    return responses


def _success(success: Success) -> Json:
    described: Json = {
        "description": success.description,
        "headers": _headers(success.headers),
    }
    if success.model is not None:
        described["content"] = {"application/json": {"schema": _ref(success.model)}}
    elif success.media_type is not None:
        kind = "object" if success.media_type == "application/json" else "string"
        described["content"] = {success.media_type: {"schema": {"type": kind}}}
    return described


def _problem(errors: Sequence[type[ProblemError]]) -> Json:
    refs = [_ref(problemdocs.MODELS[error]) for error in errors]
    later = all(issubclass(error, RetryLaterError) for error in errors)
    own = {"Retry-After": "Seconds after which to try again."} if later else {}
    if any(issubclass(error, UnauthenticatedError) for error in errors):
        own["WWW-Authenticate"] = (
            "`Bearer` where a token of this daemon is needed, else `Keystone`."
        )
    return {
        "description": " · ".join(error.title for error in errors),
        "headers": _headers(own),
        "content": {MEDIA_TYPE: {"schema": refs[0] if len(refs) == 1 else {"oneOf": refs}}},
    }


def _headers(own: Mapping[str, str]) -> Json:
    echoed = dict.fromkeys(requestid.HEADERS, _REQUEST_ID)
    return {
        name: {"description": text, "required": True, "schema": {"type": "string"}}
        for name, text in {**echoed, **own}.items()
    }


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}
