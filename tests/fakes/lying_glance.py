"""An image service that does as it is told: honest until a script makes it lie.

::

    async with LyingGlance() as service:
        image_id = service.add(b"some bytes")
        service.lie("data", cut(after=4), status(503))   # the next two requests for data
        ... # a client of service.url
        assert [seen.range for seen in service.calls("data")] == [None, "bytes=4-", "bytes=4-"]
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aiohttp import web
from aiohttp.test_utils import TestServer

from cacheagent.model import ImageId
from cacheagent.policy.answers import parse_range

if TYPE_CHECKING:
    from typing import Self

Call = Literal["versions", "list", "show", "access", "data"]
"""What is asked for; ``access`` is a request for the first byte of the data alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that came: what for, with which headers."""

    call: Call
    image_id: str | None
    headers: Mapping[str, str]

    @property
    def range(self) -> str | None:
        """The Range that was asked for."""
        return self.headers.get("Range")


@dataclass(slots=True, kw_only=True)
class Stored:
    """An image of the service: its bytes, and its metadata as ``show`` gives them."""

    data: bytes
    metadata: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request with all that an answer to it needs."""

    request: web.Request
    stored: Stored | None
    over: asyncio.Event

    @property
    def data(self) -> bytes:
        """All bytes of the image."""
        return b"" if self.stored is None else self.stored.data

    @property
    def wanted(self) -> range:
        """The bytes that the request asks for."""
        text = self.request.headers.get("Range")
        return range(len(self.data)) if text is None else parse_range(text, len(self.data))

    def partial(self, first: int) -> dict[str, str]:
        """Give the Content-Range of a part that goes from ``first`` to the end."""
        size = len(self.data)
        return {"Content-Range": f"bytes {first}-{size - 1}/{size}"}


Lie = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass(slots=True, kw_only=True)
class LyingGlance:
    """The service, to be used as a context; ``url`` is where it listens then.

    ``accepts`` are the tokens that it takes, None for any or none; ``expired`` those that it takes
    beside an accepted service token only; ``forbids`` those that get metadata and no data.
    """

    accepts: set[str] | None = None
    expired: set[str] = field(default_factory=set)
    forbids: set[str] = field(default_factory=set)
    images: dict[ImageId, Stored] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    _script: defaultdict[str, deque[Lie]] = field(default_factory=lambda: defaultdict(deque))
    _always: dict[str, Lie] = field(default_factory=dict)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _server: TestServer | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        self._server = TestServer(app)
        await self._server.start_server(access_log=None)
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._over.set()
        if self._server is not None:
            await self._server.close()

    def add(self, data: bytes, **metadata: object) -> ImageId:
        """Store an image; ``metadata`` overrides what is true of it."""
        image_id = ImageId(str(metadata.get("id", uuid.uuid4())))
        truth: dict[str, object] = {
            "id": image_id,
            "name": "some image",
            "status": "active",
            "disk_format": "raw",
            "container_format": "bare",
            "size": len(data),
            "virtual_size": len(data),
            "min_disk": 0,
            "min_ram": 0,
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(data).hexdigest(),
            "checksum": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "visibility": "public",
            "owner": "7f1e0b5c",
            "os_hidden": False,
        }
        self.images[image_id] = Stored(data=data, metadata=truth | metadata)
        return image_id

    def lie(self, call: Call, *lies: Lie) -> None:
        """Answer the next requests of this call so; those after them get the truth."""
        self._script[call].extend(lies)

    def always(self, call: Call, lie: Lie) -> None:
        """Answer every request of this call so, once its script is at its end."""
        self._always[call] = lie

    def truth(self, call: Call) -> None:
        """Answer requests of this call with the truth again."""
        self._script.pop(call, None)
        self._always.pop(call, None)

    def calls(self, call: Call) -> list[Seen]:
        """Give the requests of this call, in the order they came."""
        return [seen for seen in self.seen if seen.call == call]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call, image_id = _parse(request)
        self.seen.append(Seen(call=call, image_id=image_id, headers=request.headers.copy()))
        stored = self.images.get(ImageId(image_id or ""))
        exchange = Exchange(request=request, stored=stored, over=self._over)
        if script := self._script[call]:
            return await script.popleft()(exchange)
        if call in self._always:
            return await self._always[call](exchange)
        refusal = None if call == "versions" else self._refusal(request, call)
        return await (status(refusal) if refusal else _TRUTHS[call])(exchange)

    def _refusal(self, request: web.Request, call: Call) -> int | None:
        token = request.headers.get("X-Auth-Token", "")
        accepted = self.accepts is None or token in self.accepts
        if token in self.expired:
            accepted = request.headers.get("X-Service-Token", "") in (self.accepts or ())
        if not accepted:
            return 401
        return 403 if call != "show" and token in self.forbids else None


def _parse(request: web.Request) -> tuple[Call, str | None]:
    match request.path.strip("/").split("/"):
        case [*_, "images"]:
            return "list", None
        case [*_, "images", image_id]:
            return "show", image_id
        case [*_, "images", image_id, "file"]:
            probes = request.headers.get("Range") == "bytes=0-0"
            return ("access" if probes else "data"), image_id
        case _:
            return "versions", None


async def _true_versions(exchange: Exchange) -> web.StreamResponse:
    return await versions("v2.18", "v2.17", "v2.0")(exchange)


async def _true_list(_exchange: Exchange) -> web.StreamResponse:
    return web.json_response({"images": []})


async def _true_metadata(exchange: Exchange) -> web.StreamResponse:
    if exchange.stored is None:
        return await status(404)(exchange)
    return web.json_response(exchange.stored.metadata)


async def _true_data(exchange: Exchange) -> web.StreamResponse:
    if exchange.stored is None:
        return await status(404)(exchange)
    if exchange.stored.metadata["status"] != "active":
        return await status(403)(exchange)
    try:
        wanted = exchange.wanted
    except ValueError:
        return await status(416)(exchange)
    body = exchange.data[wanted.start : wanted.stop]
    if "Range" not in exchange.request.headers:
        return web.Response(body=body)
    said = f"bytes {wanted.start}-{wanted.stop - 1}/{len(exchange.data)}"
    return web.Response(status=206, body=body, headers={"Content-Range": said})


_TRUTHS: dict[Call, Lie] = {
    "versions": _true_versions,
    "list": _true_list,
    "show": _true_metadata,
    "access": _true_data,
    "data": _true_data,
}


def status(code: int, **headers: str) -> Lie:
    """Answer with an error in HTML; underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def lie(_exchange: Exchange) -> web.StreamResponse:
        body = None if code == web.HTTPNoContent.status_code else b"<html>no</html>"
        return web.Response(status=code, body=body, headers=named, content_type="text/html")

    return lie


def versions(*ids: str) -> Lie:
    """Offer these versions of the API."""

    async def lie(_exchange: Exchange) -> web.StreamResponse:
        return web.json_response({"versions": [{"id": each} for each in ids]}, status=300)

    return lie


def text(body: str, code: int = 200) -> Lie:
    """Answer with this text, whatever was asked for."""

    async def lie(_exchange: Exchange) -> web.StreamResponse:
        return web.Response(text=body, status=code)

    return lie


def metadata(*without: str, **changed: object) -> Lie:
    """Show the metadata with some members left out and some changed."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        shown = dict(exchange.stored.metadata if exchange.stored else {}) | changed
        for member in without:
            del shown[member]
        return web.Response(text=json.dumps(shown))

    return lie


def cut(after: int) -> Lie:
    """Promise what was asked for, and end the connection after so many bytes of it."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        response = await _begin(exchange)
        await response.write(exchange.data[exchange.wanted.start :][:after])
        _hang_up(exchange)
        return response

    return lie


def silence(after: int) -> Lie:
    """Promise what was asked for, and say nothing more after so many bytes of it."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        response = await _begin(exchange)
        await response.write(exchange.data[exchange.wanted.start :][:after])
        await exchange.over.wait()
        _hang_up(exchange)
        return response

    return lie


def dripping() -> Lie:
    """Begin an answer and send a blank now and then, for ever."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(exchange.request)
        while not exchange.over.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    return lie


def dripping_header() -> Lie:
    """Begin a header and send a byte of it now and then, for ever."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        transport = exchange.request.transport
        assert transport is not None
        transport.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not exchange.over.is_set() and not transport.is_closing():
            transport.write(b"a")
            await asyncio.sleep(0.05)
        _hang_up(exchange)
        return web.Response()

    return lie


def raw(data: bytes) -> Lie:
    """Send these bytes in the place of an answer, and end the connection."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        if exchange.request.transport is not None:
            exchange.request.transport.write(data)
        _hang_up(exchange)
        return web.Response()

    return lie


def no_answer() -> Lie:
    """End the connection instead of an answer."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        _hang_up(exchange)
        return web.Response()

    return lie


def held(gate: asyncio.Event) -> Lie:
    """Tell the truth about data once the gate is open."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        await gate.wait()
        return await _true_data(exchange)

    return lie


def paused(after: int, gate: asyncio.Event) -> Lie:
    """Send so many bytes, wait until the gate is open, and send the rest."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        response = await _begin(exchange)
        wanted = exchange.data[exchange.wanted.start :]
        await response.write(wanted[:after])
        await gate.wait()
        await response.write(wanted[after:])
        return response

    return lie


def body(
    data: bytes, code: int = 200, *, chunked: bool = False, headers: Mapping[str, str] | None = None
) -> Lie:
    """Answer with these bytes under these headers; ``chunked``: without a Content-Length."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        if not chunked:
            return web.Response(body=data, status=code, headers=headers)
        response = web.StreamResponse(status=code, headers=headers)
        await response.prepare(exchange.request)
        await response.write(data)
        return response

    return lie


def whole_as_200() -> Lie:
    """Send the whole image, and say so, whatever Range was asked for."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        return web.Response(body=exchange.data)

    return lie


def whole_as_206(*, content_range: Literal["asked", "true", "none"] = "asked") -> Lie:
    """Send the whole image as if it were a part: the one asked for, the whole, or none told."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        first = exchange.wanted.start if content_range == "asked" else 0
        headers = {} if content_range == "none" else exchange.partial(first)
        return web.Response(status=206, body=exchange.data, headers=headers)

    return lie


def other_part(shift: int) -> Lie:
    """Send a part that begins so many bytes later than the one asked for, and say so."""

    async def lie(exchange: Exchange) -> web.StreamResponse:
        first = exchange.wanted.start + shift
        data = exchange.data[first:]
        return web.Response(status=206, body=data, headers=exchange.partial(first))

    return lie


async def _begin(exchange: Exchange) -> web.StreamResponse:
    """Send the headers of an honest answer."""
    wanted = exchange.wanted
    response = web.StreamResponse()
    if "Range" in exchange.request.headers:
        response.set_status(206)
        response.headers.update(exchange.partial(wanted.start))
    response.content_length = len(wanted)
    await response.prepare(exchange.request)
    return response


def _hang_up(exchange: Exchange) -> None:
    if exchange.request.transport is not None:
        exchange.request.transport.close()
