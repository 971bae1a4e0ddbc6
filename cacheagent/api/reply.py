"""The answer of a handler: a response that knows what to say of itself in log and metrics."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from cacheagent.model import CacheResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Mapping

    from cacheagent.api.wire import Answer

Result = Literal["hit", "miss", "joined", "rejected", "error"]

RESULTS: Mapping[CacheResult, Result] = {
    CacheResult.HIT: "hit",
    CacheResult.MISS: "miss",
    CacheResult.JOINED: "joined",
    CacheResult.BLANK: "hit",
}
"""As what a request counts, by what it found; a blank disk waits for nothing."""

FIRST_ERROR = 500
"""The first status that is an ``error``: what is below, and no success, was ``rejected``."""


class Reply(web.Response):
    """A response, the value of the metrics' label ``result``, and the word of a problem."""

    result: Result
    word: str | None
    detail: str | None

    def __init__(  # noqa: PLR0913 - it is what a response is made of
        self,
        *,
        status: int,
        body: bytes | BytesIO | None = None,
        content_type: str | None = None,
        charset: str | None = None,
        headers: Mapping[str, str] | None = None,
        result: Result = "hit",
        word: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(
            status=status, body=body, content_type=content_type, charset=charset, headers=headers
        )
        self.result = result
        self.word = word
        self.detail = detail


def json_reply(
    status: int,
    answer: Answer,
    *,
    result: Result = "hit",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Give ``answer`` as JSON."""
    return Reply(
        status=status,
        body=_written(answer),
        content_type="application/json",
        headers=headers,
        result=result,
    )


async def list_reply(name: str, rows: AsyncIterable[Answer]) -> Reply:
    """Give ``rows`` as JSON, as the only member ``name`` of an object.

    Each is written when it comes: ten thousand as values would take several times the room of
    the text, and to write them in one go would hold up everybody else.
    """
    # Of a file aiohttp sends one block after another; of bytes it would make two more copies.
    body = BytesIO()
    body.write(f'{{"{name}":['.encode())
    comma = b""
    async for row in rows:
        body.write(comma + _written(row))
        comma = b","
    body.write(b"]}")
    body.seek(0)
    return Reply(status=200, body=body, content_type="application/json")


def long_reply(answer: Answer, name: str, rows: Iterable[Answer]) -> Reply:
    """Give ``answer`` as JSON, with ``rows`` as its member ``name``, an empty list until now.

    Each is written when it comes, as in ``list_reply``.
    """
    # A quote within a string is escaped, so that this stands nowhere but where it is meant.
    head, _, tail = _written(answer).partition(f'"{name}":[]'.encode())
    written = b",".join(map(_written, rows))
    body = BytesIO()
    body.writelines((head, f'"{name}":['.encode(), written, b"]", tail))
    body.seek(0)
    return Reply(status=200, body=body, content_type="application/json")


def _written(answer: Answer) -> bytes:
    # Unset is only what does not name a user: see ``wire.User``.
    return answer.model_dump_json(exclude_unset=True).encode()


def empty_reply() -> Reply:
    """Say that it is done, and nothing more: 204."""
    return Reply(status=204)
