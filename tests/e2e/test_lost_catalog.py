"""The catalog is deleted under a stopped daemon: the files tell everything that they can."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent import agent_on, without_keystone
from tests.fakes.images import made_by_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.agent import Agent
    from tests.fakes.lying_glance import LyingGlance

MIB = 1 << 20
NEW = {"pinned", "last_used_at", "users", "created_at", "image_id", "spec", "cache"}
"""Members that only the catalog knew, or that are about it."""


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on it that keeps qcow2 images as they are, and converts all others."""
    settings = without_keystone(glance.url, images={"base_format": "keep"}, log={"format": "json"})
    async with agent_on(settings) as running:
        yield running


@pytest.fixture
def images(glance: LyingGlance, tmp_path: Path) -> dict[str, str]:
    """Give images by what becomes of them; two of them have the same content."""
    content = {name: os.urandom(MIB) for name in ("raw", "qcow2", "vmdk")}
    of_qemu = {
        name: made_by_qemu(tmp_path / name, name, "", content[name]).read_bytes()
        for name in ("qcow2", "vmdk")
    }
    raw = content["raw"]
    return {
        "raw": glance.add(raw, disk_format="raw"),
        "twin": glance.add(raw, disk_format="raw"),
        "kept": glance.add(of_qemu["qcow2"], disk_format="qcow2"),
        "converted": glance.add(of_qemu["vmdk"], disk_format="vmdk"),
    }


async def lose_catalog(agent: Agent) -> None:
    """Stop the daemon, delete its catalog, and start it."""
    assert await agent.stop() == 0
    for path in agent.state.glob("catalog.db*"):
        path.unlink()
    await agent.start()


async def all_images(agent: Agent) -> dict[str, Any]:
    """Give what is told of all images."""
    found = (await agent.ask("GET", "/v1/images")).body["images"]
    return {image["image_id"]: _lasting(image) for image in found}


async def all_disks(agent: Agent) -> dict[str, Any]:
    """Give what is told of all disks."""
    found = (await agent.ask("GET", "/v1/instances")).body["instances"]
    disks = (disk for instance in found for disk in instance["disks"])
    return {f"{disk['instance_id']}/{disk['name']}": _lasting(disk) for disk in disks}


def _lasting(told: dict[str, Any]) -> dict[str, Any]:
    base = told["base"] and {k: v for k, v in told["base"].items() if k not in NEW}
    return {**{k: v for k, v in told.items() if k not in NEW}, "base": base}


async def test_everything_is_found_again(
    agent: Agent, glance: LyingGlance, images: dict[str, str]
) -> None:
    """Bases of every kind, all their images and all disks are there, in use, and not fetched."""
    blank: tuple[dict[str, Any], ...] = (
        {"size_bytes": 3 * MIB},
        {"size_bytes": 3 * MIB, "format": "raw"},
        {"size_bytes": 16 * MIB, "filesystem": "ext4"},
    )
    made = [await agent.create(image, size_bytes=4 * MIB) for image in images.values()]
    made += [await agent.create(None, **spec) for spec in blank]
    full = await agent.create(images["kept"], mode="full", size_bytes=4 * MIB)
    assert {answer.status for answer in (*made, full)} == {201}
    before = await all_images(agent), await all_disks(agent)
    downloads = len(glance.calls("data"))
    await lose_catalog(agent)
    after = await all_images(agent), await all_disks(agent)
    assert set(after[0]) == set(images.values())
    assert after[0] == before[0]
    # Nobody can tell from a copy what it was made from.
    copy = f"{full.body['instance_id']}/root"
    assert (before[1][copy]["base"] is None, after[1].pop(copy)["base"]) == (False, None)
    assert before[1].pop(copy)["path"] == full.body["path"]
    assert after[1] == before[1]
    for image in images.values():
        assert (await agent.ask("DELETE", f"/v1/images/{image}")).problem == "base-in-use"
        assert (await agent.create(image)).body["cache"] == "hit"
    assert len(glance.calls("data")) == downloads


async def test_same_requests_mean_the_same_disks(agent: Agent, images: dict[str, str]) -> None:
    """A scheduler that asks again for what it had gets it; a copy it cannot have told apart."""
    wanted: dict[str, tuple[str | None, dict[str, Any]]] = {
        f"00000000-0000-4000-8000-00000000000{number}/root": (image, spec)
        for number, (image, spec) in enumerate(
            [
                (images["raw"], {"size_bytes": 4 * MIB}),
                (images["twin"], {"size_bytes": 4 * MIB}),
                (images["kept"], {}),
                (None, {"size_bytes": 3 * MIB}),
            ]
        )
    }
    paths = {}
    for key, (image, spec) in wanted.items():
        paths[key] = (await agent.create(image, key, **spec)).body["path"]
    await lose_catalog(agent)
    for key, (image, spec) in wanted.items():
        again = await agent.create(image, key, **spec)
        assert (again.status, again.body["path"]) == (200, paths[key])


async def test_what_is_lost_is_said(agent: Agent, images: dict[str, str]) -> None:
    """Pins are gone, and the log says so."""
    await agent.create(images["raw"])
    path = f"/v1/images/{images['raw']}"
    await agent.ask("PUT", f"{path}/pin")
    assert (await agent.ask("GET", path)).body["pinned"]
    await lose_catalog(agent)
    assert not (await agent.ask("GET", path)).body["pinned"]
    (_, said) = agent.lines("there is no catalog; a first start, or it was removed")
    assert said["lost"] == "pins and times of last use are gone"


async def test_base_without_a_manifest_is_proved_by_its_digest(
    agent: Agent, glance: LyingGlance, images: dict[str, str]
) -> None:
    """The manifests went as well: what lies here as it came is read, and need not be fetched."""
    for image in ("raw", "kept", "converted"):
        await agent.ask("PUT", f"/v1/images/{images[image]}", {"wait": True})
    downloads = len(glance.calls("data"))
    for manifest in (agent.state / "bases").glob("*.json"):
        await asyncio.to_thread(manifest.unlink)
    await lose_catalog(agent)
    await agent.logged("a base without a manifest was proved", 2)
    assert await agent.metric("unknown_files") == 3  # as the start found them
    for image in ("raw", "twin", "kept"):
        assert (await agent.create(images[image])).body["cache"] == "hit"
    assert len(glance.calls("data")) == downloads
    # That of a conversion has no digest that anybody knows: it is made anew.
    assert (await agent.create(images["converted"])).body["cache"] == "miss"
