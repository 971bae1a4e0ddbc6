"""Each row of docs/formats.md, with a real Glance: what becomes a disk, and what is refused."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.e2e import qemu
from tests.e2e.openstack import agent_in, token_of, upload
from tests.fakes.containers import COMPRESS, ova
from tests.images import CONVERTED, ISO, real_images

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.e2e.agent import Agent
    from tests.images import RealImage
    from tests.openstack.cloud import Cloud

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "formats.md"
KERNEL = b"\x1f\x8b\x08 a kernel, of which not a byte may be added" + os.urandom(10_001)
RAMDISK = b"070701 a ramdisk" + os.urandom(10_001)

pytestmark = pytest.mark.asyncio(loop_scope="module")

Images = dict[str, "RealImage"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(cloud: Cloud) -> AsyncIterator[Agent]:
    """Run one daemon for all formats."""
    async with agent_in(cloud, {"retries": 0}) as running:
        yield running


@pytest.fixture(scope="module")
def images() -> Images:
    """Give real images, all but the ISO with the same content."""
    return real_images()


def _file(*names: str) -> Callable[[Images], list[bytes]]:
    return lambda images: [images[name].path.read_bytes() for name in names]


def _packed(name: str) -> Callable[[Images], list[bytes]]:
    return lambda images: [ova(images[name].path.read_bytes(), images[name].virtual_size_bytes)]


def _compressed(name: str, *hows: str) -> Callable[[Images], list[bytes]]:
    return lambda images: [COMPRESS[how](images[name].path.read_bytes()) for how in hows]


def _packed_or_plain(images: Images) -> list[bytes]:
    # Another VMDK than that of the bare row, so that this one has to come too.
    plain = images["disk-stream.vmdk"].path.read_bytes()
    return [*_packed("disk.vmdk")(images), plain]


def _another_raw(images: Images) -> list[bytes]:
    return [images["disk.raw"].path.read_bytes()]


ACCEPTED: Mapping[tuple[str, str], Callable[[Images], list[bytes]]] = {
    ("raw", "bare"): _file("disk.raw"),
    ("qcow2", "bare"): _file("disk.qcow2", "disk-v2-compressed.qcow2"),
    ("vhd", "bare"): _file("disk.vhd"),
    ("vhdx", "bare"): _file("disk.vhdx"),
    ("vmdk", "bare"): _file("disk.vmdk", "disk-stream.vmdk"),
    ("vdi", "bare"): _file("disk.vdi"),
    ("iso", "bare"): _file(ISO),
    ("ami", "ami"): _another_raw,
    ("aki", "aki"): lambda _: [KERNEL],
    ("ari", "ari"): lambda _: [RAMDISK],
    ("vmdk", "ova"): _packed("disk-stream.vmdk"),
    ("vmdk", "ovf"): _packed_or_plain,
    ("raw", "ovf"): _another_raw,
    ("raw", "compressed"): _compressed("disk.raw", *COMPRESS),
    ("qcow2", "compressed"): _compressed("disk.qcow2", "gzip"),
}
"""The rows of images that are accepted, with what is uploaded for each."""

REFUSED: Mapping[tuple[str, str], str] = {
    ("raw", "docker"): "container-format",
    ("ploop", "bare"): "disk-format-unknown",
}
"""The rows of images that are refused before a byte is asked for, with the reason."""


def _name(row: tuple[str, str]) -> str:
    return " in ".join(row)


def _content(row: tuple[str, str], images: Images) -> bytes:
    """Give what is on the disk of such an image."""
    kernels = {"aki": KERNEL, "ari": RAMDISK}
    name = ISO if row[0] == "iso" else "disk.raw"
    return kernels.get(row[0]) or images[name].path.read_bytes()


@pytest.mark.parametrize("row", ACCEPTED, ids=_name)
async def test_row(agent: Agent, cloud: Cloud, images: Images, row: tuple[str, str]) -> None:
    """An image of the row becomes a raw base with the content of its disk."""
    disk_format, container = row
    token = await token_of(cloud, "alice")
    expected = await asyncio.to_thread(_content, row, images)
    for data in await asyncio.to_thread(ACCEPTED[row], images):
        image_id = await upload(cloud, "alice", data, disk_format, container_format=container)
        answer = await agent.create(image_id, token=token)
        assert answer.status == 201, answer.body
        assert answer.body["base"]["format"] == "raw"
        base = Path(answer.body["base"]["path"])
        assert await asyncio.to_thread(base.read_bytes) == expected
        await qemu.check(answer.body["path"])
    assert agent.left_in_ingest() == []


@pytest.mark.parametrize("row", REFUSED, ids=_name)
async def test_refused_row(agent: Agent, cloud: Cloud, row: tuple[str, str]) -> None:
    """An image of the row is refused in words, and not downloaded."""
    before = await agent.metric('glance_requests_total{call="data",status="200"}')
    disk_format, container = row
    data = os.urandom(1024)
    image_id = await upload(cloud, "alice", data, disk_format, container_format=container)
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (422, "image-unacceptable")
    assert answer.body["reason"] == REFUSED[row]
    assert row[0 if disk_format == "ploop" else 1] in answer.body["detail"]
    assert await agent.metric('glance_requests_total{call="data",status="200"}') == before


async def test_ami_with_kernel_and_ramdisk(agent: Agent, cloud: Cloud) -> None:
    """The three images of an AMI become three files, and those that are loaded stay as they are."""
    boot = {
        f"{name}_id": await upload(cloud, "alice", data, kind, container_format=kind)
        for name, kind, data in (("kernel", "aki", KERNEL), ("ramdisk", "ari", RAMDISK))
    }
    data = os.urandom(1 << 20)
    image_id = await upload(cloud, "alice", data, "ami", container_format="ami", **boot)
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert answer.status == 201, answer.body
    found = {
        name: (Path(file["path"]).read_bytes(), file["size_bytes"], file["state"])
        for name, file in answer.body["boot"].items()
    }
    assert found == {
        "kernel": (KERNEL, len(KERNEL), "ready"),
        "ramdisk": (RAMDISK, len(RAMDISK), "ready"),
    }
    assert await qemu.content(answer.body["path"], "qcow2", 1 << 20) == data


async def test_kernel_of_another_tenant(agent: Agent, cloud: Cloud) -> None:
    """An AMI does not open the kernel that its owner may not see."""
    kernel_id = await upload(cloud, "bob", KERNEL, "aki", container_format="aki")
    assert (await agent.create(kernel_id, token=await token_of(cloud, "bob"))).status == 201
    image_id = await upload(
        cloud, "alice", os.urandom(1024), "ami", container_format="ami", kernel_id=kernel_id
    )
    answer = await agent.create(image_id, token=await token_of(cloud, "alice"))
    assert (answer.status, answer.problem) == (404, "image-not-found")


async def test_every_row_of_the_table() -> None:
    """The document tells of what is tested here, and of nothing else."""
    text = await asyncio.to_thread(DOCUMENT.read_text)
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| .* \| (.*) \|$", text, flags=re.MULTILINE)
    refused = {(one, other): what for one, other, what in rows if what.startswith("refused")}
    assert {(one, other) for one, other, _ in rows} - refused.keys() == ACCEPTED.keys()
    assert refused == {row: f"refused: `{reason}`" for row, reason in REFUSED.items()}
    assert {image.rpartition(".")[2] for image in CONVERTED} < {row[0] for row in ACCEPTED}
