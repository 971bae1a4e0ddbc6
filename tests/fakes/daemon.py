"""A daemon that answers as the API says, from memory, on a Unix socket.

It runs in a thread of its own, so that clients with and without a loop can speak to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes import upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp.typedefs import Handler

    Json = dict[str, Any]

NOW = "2026-03-01T10:00:00Z"
INSTANCE = "2d8a7f7e-93a1-4b8c-9a58-0f0b8d6f6a01"
CACHED = "70a599e0-31e7-49b7-b260-868f441e862b"
TWIN = "8ec1c1d2-5b0f-4f39-9a55-7d3f2b1a0c05"
COMING = "d2f0b3a4-0a9e-4c56-8a3f-6a1f6e3b0c02"
FORBIDDEN = "5f0c2b52-6a4f-4b7e-9d51-3f0a6c1d2e03"
BROKEN = "9b1d4c63-7e2a-4f18-8c90-1a2b3c4d5e04"
MISSING = "00000000-0000-4000-8000-000000000000"
BASE = {"base_id": f"sha512-{'ab' * 64}", "path": "/srv/bases/x.raw", "format": "raw"}
SIZE = 3 << 30
STEPS = 3

_PROBLEMS = {
    "disk-not-found": 404,
    "disk-conflict": 409,
    "base-in-use": 409,
    "image-forbidden": 403,
    "image-not-found": 404,
    "instance-not-found": 404,
    "invalid-request": 400,
    "glance-unavailable": 503,
    "shutting-down": 503,
    "unauthenticated": 401,
    "too-many-requests": 429,
}


_RETRY_AFTER = {503: {"Retry-After": "5"}, 429: {"Retry-After": "0"}}


def _problem(word: str, **members: object) -> web.Response:
    status = _PROBLEMS[word]
    title = word.replace("-", " ").capitalize()
    detail = members.pop("detail", f"this is {word}")
    return web.json_response(
        {"type": f"urn:cacheagent:{word}", "title": title, "status": status, "detail": detail}
        | members,
        status=status,
        content_type="application/problem+json",
        headers=_RETRY_AFTER.get(status, {}),
    )


def _new_image(image_id: str, name: str, state: str) -> Json:
    ready = state == "ready"
    return {
        "image_id": image_id,
        "name": name,
        "state": state,
        "base": BASE if ready else None,
        "size_bytes": SIZE,
        "virtual_size_bytes": SIZE if ready else None,
        "allocated_bytes": SIZE // 2 if ready else 0,
        "disk_format": "qcow2",
        "progress": None,
        "pinned": False,
        "in_use": False,
        "users": [],
        "fetched_at": NOW if ready else None,
        "last_used_at": NOW if ready else None,
        "error": None,
    }


class FakeDaemon:
    """Notes what was asked of it in ``requests``: method, path, headers, JSON.

    ``CACHED`` and ``TWIN`` are ready; ``COMING`` takes as many steps as somebody looks at it;
    ``FORBIDDEN`` is refused; the download of ``BROKEN`` fails; no other is known.

    The next ``too_many`` requests are refused, to be sent again at once. Unless ``listing``, the
    images are not listed without a token.

    Each connection that follows is told one of ``events``, and is cut then; behind the last of
    them the daemon is stopping.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], object]] = []
        self.disks: dict[str, dict[str, Json]] = {}
        self.images = {
            CACHED: _new_image(CACHED, "debian-12", "ready"),
            TWIN: _new_image(TWIN, "twin", "ready"),
        }
        self.stopping = False
        self.too_many = 0
        self.listing = True
        self.events: list[tuple[str, str]] = []
        self._came = asyncio.Event()

    @contextlib.contextmanager
    def running(self, path: Path) -> Iterator[str]:
        """Serve on the socket ``path``, and give it as text."""
        loop = asyncio.new_event_loop()
        ready, stop = threading.Event(), asyncio.Event()
        thread = threading.Thread(
            target=loop.run_until_complete, args=(self._serve(path, ready, stop),)
        )
        thread.start()
        try:
            assert ready.wait(10)
            yield str(path)
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()

    async def _serve(self, path: Path, ready: threading.Event, stop: asyncio.Event) -> None:
        runner = web.AppRunner(
            self._app(), access_log=None, shutdown_timeout=1, handler_cancellation=True
        )
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._note])
        router, disk = app.router, "/v1/instances/{instance}/disks/{name}"
        router.add_put(disk, self._create)
        router.add_get(disk, self._disk)
        router.add_delete(disk, self._remove)
        router.add_get("/v1/instances", self._instances)
        router.add_get("/v1/instances/{instance}", self._instance)
        router.add_delete("/v1/instances/{instance}", self._remove)
        router.add_get("/v1/images", self._images)
        router.add_get("/v1/images/{image}", self._image)
        router.add_put("/v1/images/{image}", self._pull)
        router.add_delete("/v1/images/{image}", self._evict)
        router.add_put("/v1/images/{image}/pin", self._pin)
        router.add_delete("/v1/images/{image}/pin", self._pin)
        router.add_get("/v1/images/{image}/why", self._why)
        router.add_post("/v1/images/{image}/verify", self._verify)
        router.add_post("/v1/prune", self._prune)
        router.add_get("/v1/events", self._events)
        router.add_get("/v1/status", self._status)
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.raw_path, dict(request.headers), body))
        if self.stopping:
            return _problem("shutting-down", detail="the daemon is stopping")
        if self.too_many:
            self.too_many -= 1
            return _problem("too-many-requests")
        return await handler(request)

    async def _create(self, request: web.Request) -> web.Response:
        instance, name = request.match_info["instance"], request.match_info["name"]
        wish = await request.json()
        there = self.disks.get(instance, {}).get(name)
        if there is not None:
            if there["image_id"] == wish.get("image_id"):
                return web.json_response(there)
            return _problem("disk-conflict", existing={"image_id": there["image_id"]})
        image_id = wish.get("image_id")
        hit = image_id in self.images
        if image_id is not None and (refusal := await self._fetch(image_id)) is not None:
            return refusal
        disk = {
            "instance_id": instance,
            "name": name,
            "state": "ready",
            "path": f"/srv/instances/{instance}/{name}.qcow2",
            "format": wish.get("format", "qcow2"),
            "mode": wish.get("mode", "overlay"),
            "virtual_size_bytes": wish.get("size_bytes", SIZE),
            "image_id": image_id,
            "base": BASE if image_id else None,
            "boot": None,
            "cache": "blank" if image_id is None else "hit" if hit else "miss",
            "created_at": NOW,
            "operation": None,
            "error": None,
        }
        if request.headers.get("Prefer") == "respond-async":
            return web.json_response(disk | {"state": "pending"}, status=202)
        self.disks.setdefault(instance, {})[name] = disk
        return web.json_response(disk, status=201)

    async def _fetch(self, image_id: str) -> web.Response | None:
        """Wait until the image is here; give the problem where it does not come."""
        if image_id == FORBIDDEN:
            return _problem("image-forbidden", image_id=image_id)
        if image_id == BROKEN:
            return _problem("glance-unavailable", detail="Glance answered 503 six times")
        if image_id == COMING:
            self.images.setdefault(COMING, _new_image(COMING, "debian-12", "queued"))
            await self._came.wait()
        return None if image_id in self.images else _problem("image-not-found")

    def _step(self) -> None:
        """Bring ``COMING`` one step on."""
        image = self.images[COMING]
        done = (image["progress"] or {"bytes_done": 0})["bytes_done"] + SIZE // STEPS
        if done >= SIZE:
            self.images[COMING] = _new_image(COMING, "debian-12", "ready")
            self._came.set()
            return
        image["state"] = "downloading"
        image["progress"] = {
            "bytes_done": done,
            "bytes_total": SIZE,
            "bytes_per_second": SIZE,
            "eta_seconds": 1,
        }

    async def _disk(self, request: web.Request) -> web.Response:
        disks = self.disks.get(request.match_info["instance"], {})
        disk = disks.get(request.match_info["name"])
        return _problem("disk-not-found") if disk is None else web.json_response(disk)

    async def _remove(self, request: web.Request) -> web.Response:
        instance, name = request.match_info["instance"], request.match_info.get("name")
        if name is None:
            self.disks.pop(instance, None)
        else:
            self.disks.get(instance, {}).pop(name, None)
        return web.Response(status=204)

    async def _instances(self, _request: web.Request) -> web.Response:
        found = [
            {"instance_id": instance, "disks": list(disks.values())}
            for instance, disks in self.disks.items()
        ]
        return web.json_response({"instances": found})

    async def _instance(self, request: web.Request) -> web.Response:
        instance = request.match_info["instance"]
        if instance not in self.disks:
            return _problem("instance-not-found")
        disks = list(self.disks[instance].values())
        return web.json_response({"instance_id": instance, "disks": disks})

    async def _images(self, request: web.Request) -> web.Response:
        if not self.listing and "X-Auth-Token" not in request.headers:
            return _problem("unauthenticated")
        return web.json_response({"images": list(self.images.values())})

    async def _image(self, request: web.Request) -> web.Response:
        image_id = request.match_info["image"]
        if image_id not in self.images:
            return _problem("image-not-found")
        if self.images[image_id]["state"] != "ready":
            self._step()
        return web.json_response(self.images[image_id])

    async def _pull(self, request: web.Request) -> web.Response:
        image_id, wanted = request.match_info["image"], await request.json()
        if not wanted["wait"] and image_id == COMING:
            self.images.setdefault(COMING, _new_image(COMING, "debian-12", "queued"))
            return web.json_response(self.images[COMING], status=202)
        refusal = await self._fetch(image_id)
        if refusal is not None:
            return refusal
        self.images[image_id]["pinned"] |= wanted["pin"]
        return web.json_response(self.images[image_id])

    async def _pin(self, request: web.Request) -> web.Response:
        image_id = request.match_info["image"]
        if image_id not in self.images:
            return _problem("image-not-found")
        self.images[image_id]["pinned"] = request.method == "PUT"
        return web.Response(status=204)

    async def _evict(self, request: web.Request) -> web.Response:
        image_id = request.match_info["image"]
        pinned = self.images.get(image_id, {}).get("pinned", False)
        users = [{"kind": "pin"}] if pinned else []
        users += [
            {"kind": "disk", "instance_id": instance, "name": name}
            for instance, disks in self.disks.items()
            for name, disk in disks.items()
            if disk["image_id"] == image_id
        ]
        if users:
            return _problem("base-in-use", users=users, detail="the base is in use")
        if self.images.pop(image_id, None) is None:
            return _problem("image-not-found")
        return web.Response(status=204)

    async def _why(self, request: web.Request) -> web.Response:
        image = self.images.get(request.match_info["image"])
        if image is None:
            return _problem("image-not-found")
        return web.json_response(upkeep.why(image, BASE["base_id"]))

    async def _verify(self, request: web.Request) -> web.Response:
        image_id = request.match_info["image"]
        if image_id not in self.images:
            return _problem("image-not-found")
        damaged = image_id == TWIN
        return web.json_response(upkeep.verification(image_id, BASE["base_id"], damaged=damaged))

    async def _prune(self, request: web.Request) -> web.Response:
        """Let go of all that is not pinned and not coming; ``TWIN`` turns out to be in use."""
        wanted = await request.json()
        pruned = upkeep.pruned(self.images.values(), wanted, busy=TWIN)
        if not wanted["dry_run"]:
            for image_id in (each["image_ids"][0] for each in pruned["evicted"]):
                del self.images[image_id]
        return web.json_response(pruned)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        number = int(request.headers.get("Last-Event-ID", "0-0").partition("-")[2])
        if number == len(self.events):
            return _problem("shutting-down", detail="the daemon is stopping")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        name, data = self.events[number]
        text = f"retry: 1000\n\n:\n\nid: 0-{number + 1}\nevent: {name}\ndata: {data}\n\n"
        await response.write(text.encode() + b"id: 0-9\nevent: half")
        assert request.transport is not None
        request.transport.close()
        return response

    async def _status(self, _request: web.Request) -> web.Response:
        space = {
            "size_bytes": 100 << 30,
            "used_bytes": 60 << 30,
            "free_bytes": 40 << 30,
            "cache_bytes": 30 << 30,
            "max_size_bytes": 50 << 30,
            "reserved_bytes": 0,
            "high_watermark_bytes": 85 << 30,
            "low_watermark_bytes": 75 << 30,
            "min_free_bytes": 5 << 30,
        }
        return web.json_response(
            {
                "version": "0.1.0",
                "started_at": NOW,
                "uptime_seconds": 93784.5,
                "ready": True,
                "stopping": False,
                "sandbox": "bubblewrap",
                "space": space,
                "eviction": {
                    "doubts": [{"kind": "doubt", "path": "/scanned", "detail": "is empty"}],
                    "unmet_bytes": 1 << 30,
                },
                "quarantine": {
                    "bytes": 2 << 30,
                    "max_size_bytes": 5 << 30,
                    "count": 1,
                    "files": [
                        {
                            "name": f"{BROKEN}.20260301T120000000000Z.backing-file",
                            "image_id": BROKEN,
                            "reason": "backing-file",
                            "detail": "it names a backing file",
                            "size_bytes": 2 << 30,
                            "quarantined_at": NOW,
                        }
                    ],
                },
                "counts": {
                    "images": len(self.images),
                    "quarantined": 3,
                    "disks": len(self.disks),
                },
                "loops": {"reconciler": {"last_run_at": NOW}, "pruner": {"last_run_at": None}},
                "glance": {"reachable": True, "checked_at": NOW},
            }
        )
