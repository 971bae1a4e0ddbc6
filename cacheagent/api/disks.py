"""Handlers of disks and of the instances that own them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.api import convert, reading
from cacheagent.api.context import SERVICES
from cacheagent.api.reply import RESULTS, Reply, empty_reply, json_reply, list_reply
from cacheagent.api.requests import DiskRequest
from cacheagent.model import DiskState

if TYPE_CHECKING:
    from aiohttp import web

    from cacheagent.model import DiskKey, DiskView


async def create(request: web.Request) -> Reply:
    """Create the disk; with ``Prefer: respond-async``, do not wait for its base."""
    key, caller = reading.disk_key(request), reading.caller(request)
    spec = (await reading.body(request, DiskRequest, required=True)).to_spec()
    disks = request.app[SERVICES].disks
    if reading.prefers_async(request):
        view, made = await disks.begin(key, spec, caller)
    else:
        view, made = await disks.create(key, spec, caller)
    if view.disk.state is DiskState.PENDING:
        return _coming(key, view)
    return json_reply(
        201 if made else 200,
        convert.disk(view),
        result=RESULTS[view.disk.cache] if made else "hit",
        headers={"Location": _location(key)} if made else None,
    )


def _coming(key: DiskKey, view: DiskView) -> Reply:
    return json_reply(
        202,
        convert.disk(view),
        result=RESULTS[view.disk.cache],
        headers={"Location": _location(key), "Preference-Applied": "respond-async"},
    )


def _location(key: DiskKey) -> str:
    return f"/v1/instances/{key.instance_id}/disks/{key.name}"


async def show(request: web.Request) -> Reply:
    """Give one disk."""
    view = await request.app[SERVICES].disks.show(
        reading.disk_key(request), reading.caller(request)
    )
    return json_reply(200, convert.disk(view))


async def delete(request: web.Request) -> Reply:
    """Remove the disk, if it is there."""
    await request.app[SERVICES].disks.delete(reading.disk_key(request), reading.caller(request))
    return empty_reply()


async def list_instances(request: web.Request) -> Reply:
    """Give every instance with its disks."""
    found = request.app[SERVICES].disks.instances(reading.caller(request))
    return await list_reply(
        "instances", (convert.instance(one, disks) async for one, disks in found)
    )


async def show_instance(request: web.Request) -> Reply:
    """Give one instance with its disks."""
    instance_id = reading.instance_id(request)
    disks = await request.app[SERVICES].disks.instance(instance_id, reading.caller(request))
    return json_reply(200, convert.instance(instance_id, disks))


async def delete_instance(request: web.Request) -> Reply:
    """Remove the instance with all its disks, if it is there."""
    await request.app[SERVICES].disks.delete_instance(
        reading.instance_id(request), reading.caller(request)
    )
    return empty_reply()
