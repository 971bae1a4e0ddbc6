"""Whether an answer keeps what the OpenAPI document promises."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from cacheagent.api import openapi
from cacheagent.api.routes import ROUTES

if TYPE_CHECKING:
    from aiohttp import ClientResponse


@cache
def document() -> dict[str, Any]:
    """Give the document of all routes."""
    return openapi.document(ROUTES)


def operation(method: str, path: str) -> dict[str, Any] | None:
    """Give what the document says of a method and a path, None where it says nothing."""
    for template, methods in document()["paths"].items():
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            found: dict[str, Any] | None = methods.get(method.lower())
            return found
    return None


def validate(schema: dict[str, Any], value: object) -> None:
    """Hold ``value`` to a schema of the document; ``jsonschema.ValidationError`` where it fails."""
    whole = {**schema, "components": document()["components"]}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


async def check(method: str, answer: ClientResponse) -> None:
    """Assert that the answer is one of those that the document describes for its request."""
    described = operation("GET" if method == "HEAD" else method, answer.url.raw_path)
    if described is None:
        assert answer.status in {404, 405}
        return
    response = described["responses"][str(answer.status)]
    if "content" not in response or method == "HEAD":
        assert await answer.read() == b""
        return
    content = response["content"][answer.content_type]
    if answer.content_type.endswith("json"):
        validate(content["schema"], await answer.json(content_type=None))
