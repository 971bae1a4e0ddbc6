"""The embedded image service: a folder served by the part of the Glance v2 API that we use.

``GET /`` and ``/versions``, ``/v2/images`` (``limit``, ``marker``, ``name``, ``os_hidden``),
``/v2/images/{id}``, ``/v2/images/{id}/file`` with a single Range, and ``/healthcheck``. There are
no tokens: whoever reaches it may read. Answers are those of Glance, down to errors in HTML.
"""

from __future__ import annotations

import asyncio
import html
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import structlog
from aiohttp import web

from cacheagent.backends.imagefolder import ImageFolder
from cacheagent.errors import ConfigError
from cacheagent.model import ImageId
from cacheagent.policy.answers import parse_range

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import BinaryIO

    from cacheagent.backends.imagefolder import FolderImage

DOWNLOADS: web.AppKey[Counter[ImageId]] = web.AppKey("downloads", Counter)
"""In the application: how many answers began to carry each image whole."""

_FOLDER: web.AppKey[ImageFolder] = web.AppKey("folder", ImageFolder)
_VERSIONS = ("v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0")
_DEFAULT_LIMIT, _MAX_LIMIT = 25, 1000
_SAME_NAME = (
    *("name", "status", "visibility", "owner", "disk_format", "container_format", "min_disk"),
    *("size", "virtual_size", "os_hash_algo", "os_hash_value", "checksum"),
)
_OF_AN_AMI = ("kernel_id", "ramdisk_id")

_log = structlog.get_logger(__name__)


def create_app(directory: Path) -> web.Application:
    """Make the application that serves ``directory``; it looks into it at each request."""
    app = web.Application()
    app[DOWNLOADS] = Counter()
    app[_FOLDER] = ImageFolder(directory)
    app.cleanup_ctx.append(_folder_while_running)
    for path, handler in (
        ("/", _versions),
        ("/versions", _versions),
        ("/healthcheck", _healthcheck),
        ("/v2/images", _list),
        ("/v2/images/{image_id}", _show),
        ("/v2/images/{image_id}/file", _data),
    ):
        app.router.add_get(path, handler, allow_head=False)
    return app


async def serve(
    directory: Path,
    host: str,
    port: int,
    *,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve ``directory`` until cancelled; ``ready`` is told the URL once it is reachable.

    Port 0 takes any free one.

    Raises: ``ConfigError`` where ``directory`` is no folder, or the address cannot be had.
    """
    if not await asyncio.to_thread(directory.is_dir):
        raise ConfigError(f"{directory} is no folder")
    runner = web.AppRunner(create_app(directory), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{bound}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _folder_while_running(app: web.Application) -> AsyncIterator[None]:
    # Read everything now, so that the first request need not wait for it.
    warming = asyncio.create_task(app[_FOLDER].images())
    yield
    warming.cancel()
    with suppress(asyncio.CancelledError, OSError):
        await warming
    await app[_FOLDER].close()


async def _healthcheck(_request: web.Request) -> web.Response:
    return web.Response(text="OK")


async def _versions(request: web.Request) -> web.Response:
    link = {"rel": "self", "href": f"{request.url.origin()}/v2/"}
    versions = [
        {"id": version, "status": "SUPPORTED" if number else "CURRENT", "links": [link]}
        for number, version in enumerate(_VERSIONS)
    ]
    return web.json_response({"versions": versions}, status=300)


async def _list(request: web.Request) -> web.Response:
    images = [each for each in await request.app[_FOLDER].images() if _matches(request, each)]
    marker, limit = request.query.get("marker"), _limit(request)
    if marker is not None:
        ids = [each.image.image_id for each in images]
        if marker not in ids:
            _fail(web.HTTPBadRequest, f"there is no image {marker} to go on after")
        images = images[ids.index(ImageId(marker)) + 1 :]
    body: dict[str, object] = {
        "images": [_as_json(each) for each in images[:limit]],
        "first": str(request.rel_url.without_query_params("marker")),
        "schema": "/v2/schemas/images",
    }
    if 0 < limit < len(images):
        last = images[limit - 1].image.image_id
        body["next"] = str(request.rel_url.update_query(marker=last, limit=str(limit)))
    return web.json_response(body)


def _limit(request: web.Request) -> int:
    try:
        limit = int(request.query.get("limit", _DEFAULT_LIMIT))
    except ValueError:  # of more than some thousand digits as well
        _fail(web.HTTPBadRequest, "limit is no number")
    if limit < 0:
        _fail(web.HTTPBadRequest, "limit is negative")
    return min(limit, _MAX_LIMIT)


def _matches(request: web.Request, each: FolderImage) -> bool:
    hidden = request.query.get("os_hidden", "false").lower() == "true"
    name = request.query.get("name", each.image.name)
    return each.os_hidden == hidden and each.image.name == name


async def _show(request: web.Request) -> web.Response:
    return web.json_response(_as_json(await _find(request)))


async def _find(request: web.Request) -> FolderImage:
    image_id = request.match_info["image_id"]
    found = await request.app[_FOLDER].find(image_id)
    if found is None:
        _fail(web.HTTPNotFound, f"No image found with ID {image_id}")
    return found


async def _data(request: web.Request) -> web.StreamResponse:
    found = await _find(request)
    if found.image.status == "queued":
        return web.Response(status=204)
    if found.image.status == "deactivated":
        _fail(web.HTTPForbidden, "The requested image has been deactivated")
    file = await request.app[_FOLDER].open(found)
    if file is None:
        _fail(web.HTTPServiceUnavailable, "the file is changing")
    with closing(file):
        return await _send(request, found, file)


async def _send(request: web.Request, found: FolderImage, file: BinaryIO) -> web.StreamResponse:
    size = found.image.size or 0
    wanted, response = _part(request, size), web.StreamResponse()
    if wanted is None:
        wanted = range(size)
    else:
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    response.content_type = "application/octet-stream"
    response.headers["Content-MD5"] = found.image.checksum or ""
    response.content_length = len(wanted)
    _count(request, found, wanted)
    with suppress(ConnectionError):
        await response.prepare(request)
        await _copy(request, file, wanted)
        await response.write_eof()
    return response


def _part(request: web.Request, size: int) -> range | None:
    text = request.headers.get("Range")
    if text is None:
        return None
    if "," in text:
        _fail(web.HTTPBadRequest, "more than one range")
    try:
        return parse_range(text, size)
    except ValueError as error:
        _fail(web.HTTPRequestRangeNotSatisfiable, f"Range {text} {error}")


async def _copy(request: web.Request, file: BinaryIO, wanted: range) -> None:
    """Send a part of the file; the connection is cut where the file has become shorter."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    if wanted:  # sendfile takes no empty count
        loop = asyncio.get_running_loop()
        sent = await loop.sendfile(transport, file, wanted.start, len(wanted))
        if sent != len(wanted):
            transport.abort()


def _count(request: web.Request, found: FolderImage, wanted: range) -> None:
    image_id = found.image.image_id
    downloads = request.app[DOWNLOADS]
    if len(wanted) == found.image.size:
        downloads[image_id] += 1
    _log.info(
        "image_data",
        image=found.image.name,
        image_id=image_id,
        first_byte=wanted.start,
        bytes=len(wanted),
        downloads=downloads[image_id],
        request_id=request.headers.get("X-OpenStack-Request-ID"),
    )


def _as_json(each: FolderImage) -> dict[str, object]:
    image_id = each.image.image_id
    when = datetime.fromtimestamp(each.mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": image_id,
        **{name: getattr(each.image, name) for name in _SAME_NAME},
        **{name: value for name in _OF_AN_AMI if (value := getattr(each.image, name)) is not None},
        **each.signed,
        "min_ram": 0,
        "os_hidden": each.os_hidden,
        "protected": False,
        "tags": [],
        "created_at": when,
        "updated_at": when,
        "self": f"/v2/images/{image_id}",
        "file": f"/v2/images/{image_id}/file",
        "schema": "/v2/schemas/image",
    }


def _fail(kind: type[web.HTTPError], message: str) -> NoReturn:
    """Answer with an error in HTML, as Glance does."""
    text = f"<html><body><h1>{kind.status_code}</h1>{html.escape(message)}</body></html>\n"
    raise kind(text=text, content_type="text/html")
