"""Signed images of a real Glance, with certificates from a key manager in the real catalogue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.e2e.openstack import agent_in, some_data, upload
from tests.fakes.barbican import FakeBarbican
from tests.fakes.signatures import authority, signer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.openstack.cloud import Cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_signature_is_checked_with_a_certificate_of_the_key_manager(
    cloud: Cloud, tmp_path: Path
) -> None:
    """An image with the properties that Glance defines comes; one that others signed does not."""
    root = authority()
    owner, stranger = signer(issuer=root), signer(issuer=authority(number=101))
    (tmp_path / "authorities.pem").write_bytes(root.pem)
    strict = {"verify_signatures": True, "signature_ca_file": str(tmp_path / "authorities.pem")}
    data = some_data()
    good, bad, plain = [await upload(cloud, "admin", data, visibility="public") for _ in range(3)]
    await asyncio.to_thread(cloud.set, good, owner.sign(data))
    await asyncio.to_thread(cloud.set, bad, stranger.sign(data))
    async with FakeBarbican() as keys:
        for each in (owner, stranger):
            keys.secrets[each.certificate_id] = ("application/octet-stream", each.pem)
        await asyncio.to_thread(cloud.add_service, "key-manager", keys.url)
        async with agent_in(cloud, images=strict) as agent:
            assert (await agent.create(good)).body["cache"] == "miss"
            for image_id, reason in ((bad, "signature-certificate"), (plain, "signature-missing")):
                answer = await agent.create(image_id)
                assert (answer.status, answer.body["reason"]) == (422, reason)
            assert (await agent.create(good)).body["cache"] == "hit"
