"""A daemon whose cache came by other rules than those that hold now."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent import Agent, agent_on, without_keystone
from tests.fakes.lying_glance import LyingGlance, no_answer
from tests.fakes.signatures import signer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
DATA = os.urandom(2 * MIB)


@pytest.fixture
async def agent(glance: LyingGlance) -> AsyncIterator[Agent]:
    """Run a daemon on it."""
    settings = without_keystone(glance.url, log={"format": "json"}, glance={"retries": 0})
    async with agent_on(settings) as running:
        yield running


def grow_old(agent: Agent) -> None:
    """Let the bases of a stopped daemon have been let in by the rules of an earlier version."""
    with contextlib.closing(sqlite3.connect(agent.state / "catalog.db")) as db, db:
        db.execute("UPDATE bases SET inspection_version = inspection_version - 1")


async def until_metric(agent: Agent, name: str, value: float) -> None:
    """Wait for what the daemon does in the background."""
    async with asyncio.timeout(30):
        while await agent.metric(name) != value:
            await agent.ask("GET", "/healthz")


def demand(agent: Agent, folder: Path) -> None:
    """Ask for signatures in the configuration of a running daemon."""
    images = {"verify_signatures": True, "certificates_dir": str(folder)}
    agent.settings = {**agent.settings, "images": images}
    agent.write_config()


async def test_upgrade_inspects_what_is_cached(agent: Agent, glance: LyingGlance) -> None:
    """After a start with newer rules every base is looked at again, and Glance is not needed."""
    image_id = glance.add(DATA)
    assert (await agent.create(image_id)).status == 201
    assert await agent.stop() == 0
    grow_old(agent)
    glance.always("show", no_answer())
    await agent.start()
    await until_metric(agent, 'reinspections_total{result="passed"}', 1)
    again = await agent.create(image_id)
    assert (again.status, again.body["cache"]) == (201, "hit")
    assert await agent.metric("reinspections_total" + '{result="refused"}') == 0
    assert "reinspector" in (await agent.ask("GET", "/v1/status")).body["loops"]


async def test_upgrade_refuses_what_is_cached(agent: Agent, glance: LyingGlance) -> None:
    """A base that the rules of now refuse stays for its disks, and is handed out to nobody else."""
    image_id = glance.add(DATA)
    disk = await agent.create(image_id, "6a2f41a3-c54c-4f6e-9bd0-0f0a1c6f2e11/root")
    base = Path(disk.body["base"]["path"])
    assert await agent.stop() == 0
    grow_old(agent)
    agent.settings = {**agent.settings, "images": {"max_virtual_size": MIB}}
    await agent.start()
    for _ in range(2):
        answer = await agent.create(image_id)
        assert (answer.status, answer.problem) == (422, "image-unacceptable")
        assert answer.body["reason"] == "virtual-size"
    assert base.read_bytes() == DATA
    why = (await agent.ask("GET", f"/v1/images/{image_id}/why")).body
    assert "Nobody gets it now" in why["summary"]
    shown = (await agent.ask("GET", f"/v1/images/{image_id}")).body
    assert shown["state"] == "quarantined"
    # A restart forgets nothing: it finds out once more.
    assert await agent.stop() == 0
    await agent.start()
    assert (await agent.create(image_id)).problem == "image-unacceptable"
    assert base.exists()


async def test_signatures_are_asked_for_later(
    agent: Agent, glance: LyingGlance, tmp_path: Path
) -> None:
    """From the reload on nobody gets a base whose signature was not checked, cached or not."""
    owner = signer()
    owner.put_into(tmp_path)
    signed = glance.add(DATA, **owner.sign(DATA))
    unsigned = glance.add(DATA[: MIB + 7])
    forged = glance.add(DATA[: MIB + 9], **owner.sign(DATA))
    for image_id in (signed, unsigned, forged):
        assert (await agent.create(image_id)).status == 201
    demand(agent, tmp_path)
    assert "images.verify_signatures" in (await agent.logged("reloaded"))["changed"]
    answer = await agent.create(signed)
    assert (answer.status, answer.body["cache"]) == (201, "hit")
    for image_id, reason in ((unsigned, "signature-missing"), (forged, "signature-invalid")):
        answer = await agent.create(image_id)
        assert (answer.status, answer.problem) == (422, "image-unacceptable")
        assert answer.body["reason"] == reason
    assert len(glance.calls("data")) == 3


async def test_signature_of_a_new_image_is_checked(
    agent: Agent, glance: LyingGlance, tmp_path: Path
) -> None:
    """What comes while signatures are asked for is checked on its way, and refused for one byte."""
    owner = signer("RSA-PSS")
    owner.put_into(tmp_path)
    demand(agent, tmp_path)
    await agent.logged("reloaded")
    good = glance.add(DATA, **owner.sign(DATA, "SHA-512"))
    bad = glance.add(b"X" + DATA[1:], **owner.sign(DATA, "SHA-512"))
    assert (await agent.create(good)).body["cache"] == "miss"
    answer = await agent.create(bad)
    assert (answer.status, answer.body["reason"]) == (422, "signature-invalid")
    assert len(list((agent.state / "bases").glob("*.raw"))) == 1
