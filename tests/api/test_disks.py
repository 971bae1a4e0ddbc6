"""Disks and instances over HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.errors import GlanceUnavailableError
from cacheagent.model import (
    CacheResult,
    Caller,
    DiskFormat,
    DiskMode,
    DiskSpec,
    DiskState,
)
from tests.fakes.services import BASE, BASE_PATH, DISK, IMAGE, INSTANCE, ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cacheagent.model import DiskView, InstanceId
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

PATH = f"/v1/instances/{INSTANCE}/disks/root"
AS_JSON = {
    "instance_id": INSTANCE,
    "name": "root",
    "state": "ready",
    "path": f"/instances/{INSTANCE}/root.qcow2",
    "format": "qcow2",
    "mode": "overlay",
    "virtual_size_bytes": 4096,
    "image_id": IMAGE,
    "base": {"base_id": BASE.base_id, "path": str(BASE_PATH), "format": "raw"},
    "cache": "miss",
    "created_at": "2026-03-01T12:00:00Z",
    "boot": None,
    "operation": None,
    "error": None,
}


async def test_create_answers_201_with_the_disk(ask: Ask, services: FakeServices) -> None:
    """A disk that was made now is a 201 with the disk and where it can be asked for."""
    body = {"image_id": IMAGE, "size_bytes": 8192, "format": "raw"}
    answer = await ask(
        "PUT", PATH, json=body, headers={"X-Auth-Token": "t0ken", "X-Request-ID": "a"}
    )
    assert answer.status == 201
    assert await answer.json() == AS_JSON
    assert answer.headers["Location"] == PATH
    spec = DiskSpec(image_id=IMAGE, size=8192, format=DiskFormat.RAW, mode=DiskMode.FULL)
    caller = Caller(token="t0ken", request_id="a")  # noqa: S106 - of this test alone
    assert services.script.calls == [("create", ROOT, spec, caller)]


async def test_create_answers_200_where_the_disk_was_there(
    ask: Ask, services: FakeServices
) -> None:
    """The same request again is a 200 with the same disk."""
    services.disks.made = False
    answer = await ask("PUT", PATH, json={"image_id": IMAGE})
    assert (answer.status, await answer.json()) == (200, AS_JSON)


@pytest.mark.parametrize(
    "prefer",
    [
        "respond-async",
        "wait=10, Respond-Async",
        "respond-async;x=y",
        "handling=strict,respond-async",
    ],
)
async def test_respond_async_answers_before_the_base_is_there(
    ask: Ask, services: FakeServices, prefer: str
) -> None:
    """``Prefer: respond-async`` in any of its spellings is a 202 that says where to ask again."""
    pending = replace(DISK.disk, state=DiskState.PENDING, base_id=None, virtual_size=0)
    services.disks.view = replace(DISK, disk=pending, base=None, base_path=None)
    answer = await ask("PUT", PATH, json={"image_id": IMAGE}, headers={"Prefer": prefer})
    assert answer.status == 202
    assert answer.headers["Location"] == PATH
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert (await answer.json())["state"] == "pending"
    assert [call[0] for call in services.script.calls] == ["begin"]


async def test_respond_async_answers_200_where_the_disk_was_there(
    ask: Ask, services: FakeServices
) -> None:
    """Nothing is left to be done later for a disk that is ready."""
    services.disks.made = False
    answer = await ask("PUT", PATH, json={"image_id": IMAGE}, headers={"Prefer": "respond-async"})
    assert answer.status == 200
    assert "Preference-Applied" not in answer.headers


async def test_other_preferences_are_ignored(ask: Ask, services: FakeServices) -> None:
    """A preference that is not ours changes nothing (RFC 7240, section 2)."""
    await ask("PUT", PATH, json={"image_id": IMAGE}, headers={"Prefer": "wait=5, return=minimal"})
    assert [call[0] for call in services.script.calls] == ["create"]


async def test_a_blank_disk_has_no_base(ask: Ask, services: FakeServices) -> None:
    """A disk without an image says so by null, and a failed one says why."""
    disk = replace(
        DISK.disk,
        image_id=None,
        base_id=None,
        cache=CacheResult.BLANK,
        state=DiskState.FAILED,
        error="no room",
    )
    services.disks.view = replace(DISK, disk=disk, base=None, base_path=None)
    shown = await (await ask("GET", PATH)).json()
    changed = {"image_id": None, "base": None, "cache": "blank", "state": "failed"}
    assert shown == AS_JSON | changed | {"error": "no room"}


async def test_show_gives_the_disk(ask: Ask, services: FakeServices) -> None:
    """A disk can be looked at."""
    answer = await ask("GET", PATH)
    assert (answer.status, await answer.json()) == (200, AS_JSON)
    assert services.script.calls[0][:2] == ("show", ROOT)


async def test_delete_answers_204(ask: Ask, services: FakeServices) -> None:
    """A disk that was removed leaves nothing to say."""
    answer = await ask("DELETE", PATH)
    assert answer.status == 204
    assert services.script.calls[0][:2] == ("delete", ROOT)


async def test_list_that_breaks_in_the_middle_is_a_problem(
    ask: Ask, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a list is never taken for a whole one."""

    async def broken(
        _caller: Caller,
    ) -> AsyncGenerator[tuple[InstanceId, Sequence[DiskView]], None]:
        yield INSTANCE, (DISK,)
        raise GlanceUnavailableError("it has gone")

    monkeypatch.setattr(services.disks, "instances", broken)
    answer = await ask("GET", "/v1/instances")
    assert answer.status == 503
    assert answer.content_type == "application/problem+json"


async def test_instances_are_listed_with_their_disks(ask: Ask) -> None:
    """All instances come with all their disks."""
    answer = await ask("GET", "/v1/instances")
    whole = {"instances": [{"instance_id": INSTANCE, "disks": [AS_JSON]}]}
    assert (answer.status, await answer.json()) == (200, whole)


async def test_one_instance_is_shown_with_its_disks(ask: Ask, services: FakeServices) -> None:
    """One instance looks as it does in the list."""
    answer = await ask("GET", f"/v1/instances/{INSTANCE}")
    assert await answer.json() == {"instance_id": INSTANCE, "disks": [AS_JSON]}
    assert services.script.calls[0][:2] == ("instance", INSTANCE)


async def test_an_instance_is_removed(ask: Ask, services: FakeServices) -> None:
    """An instance goes with all its disks."""
    answer = await ask("DELETE", f"/v1/instances/{INSTANCE}")
    assert answer.status == 204
    assert services.script.calls[0][:2] == ("delete_instance", INSTANCE)


async def test_a_caller_that_goes_away_cancels_its_request(
    ask: Ask, services: FakeServices
) -> None:
    """Nobody waits for a disk on behalf of a caller that has left."""
    services.disks.hangs = True
    task = asyncio.create_task(ask("PUT", PATH, json={"image_id": IMAGE}))
    await services.disks.entered.wait()
    task.cancel()
    await services.disks.cancelled.wait()
    assert services.disks.cancelled.is_set()
