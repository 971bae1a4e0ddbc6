"""What a client of the embedded image service can count on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from cacheagent import imageserver
from cacheagent.backends.imagefolder import ImageFolder
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any, BinaryIO

    from aiohttp import web

    from cacheagent.backends.imagefolder import FolderImage

DATA = bytes(range(256)) * 1000


class Service:
    """The service over a folder, as a client sees it."""

    def __init__(self, app: web.Application, client: TestClient[Any, Any]) -> None:
        self.app = app
        self.client = client

    async def page(self, query: str = "") -> dict[str, Any]:
        """Give the list of images."""
        async with self.client.get(f"/v2/images{query}") as response:
            assert response.status == 200
            return dict(await response.json())

    async def names(self, query: str = "") -> list[str]:
        """Give the names in the list of images."""
        return [image["name"] for image in (await self.page(query))["images"]]

    async def only(self) -> dict[str, Any]:
        """Give the one image that there is."""
        [image] = (await self.page())["images"]
        return dict(image)

    async def status(self, path: str) -> int:
        """Give the status of an answer."""
        async with self.client.get(path) as response:
            return response.status

    async def data(self, image_id: str, wanted: str | None = None) -> tuple[int, str | None, bytes]:
        """Give status, Content-Range and body of an answer with data."""
        headers = {} if wanted is None else {"Range": wanted}
        async with self.client.get(f"/v2/images/{image_id}/file", headers=headers) as response:
            return response.status, response.headers.get("Content-Range"), await response.read()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Serve the empty folder ``tmp_path``."""
    app = imageserver.create_app(tmp_path)
    async with TestClient(TestServer(app)) as client:
        service = Service(app, client)
        await service.page()  # its look into the folder at the start is over
        yield service


async def test_versions_look_like_those_of_glance(service: Service) -> None:
    """A list under 300, with a version 2 and a link to it, at both addresses."""
    for path in ("/", "/versions"):
        async with service.client.get(path) as response:
            versions = (await response.json())["versions"]
            assert response.status == 300
        assert versions[0]["id"].startswith("v2.")
        assert versions[0]["links"][0]["href"].endswith("/v2/")


async def test_a_load_balancer_can_ask_whether_it_is_alive(service: Service) -> None:
    """As Glance's own health check does."""
    assert await service.status("/healthcheck") == 200


async def test_a_file_is_an_active_public_image(service: Service, tmp_path: Path) -> None:
    """Its metadata are those that Glance would have for it, digests included."""
    (tmp_path / "debian.raw").write_bytes(DATA)
    image = await service.only()
    expected = {
        "name": "debian",
        "status": "active",
        "visibility": "public",
        "disk_format": "raw",
        "container_format": "bare",
        "size": len(DATA),
        "virtual_size": len(DATA),
        "min_disk": 0,
        "min_ram": 0,
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(DATA).hexdigest(),
        "checksum": hashlib.md5(DATA, usedforsecurity=False).hexdigest(),
    }
    assert {key: image[key] for key in expected} == expected
    async with service.client.get(image["self"]) as response:
        assert await response.json() == image


@pytest.mark.parametrize(
    ("name", "disk_format"),
    [
        ("a.img", "raw"),
        ("a.qcow2", "qcow2"),
        ("a.VMDK", "vmdk"),
        ("a.vdi", "vdi"),
        ("a.vpc", "vhd"),
        ("a.vhd", "vhd"),
        ("a.vhdx", "vhdx"),
        ("a.iso", "iso"),
    ],
)
async def test_the_ending_of_a_file_tells_its_format(
    service: Service, tmp_path: Path, name: str, disk_format: str
) -> None:
    """In Glance's names of the formats."""
    (tmp_path / name).write_bytes(DATA)
    assert (await service.only())["disk_format"] == disk_format


@pytest.mark.parametrize(
    ("name", "disk_format", "container"),
    [
        ("a.ova", "vmdk", "ova"),
        ("a.qcow2.gz", "qcow2", "compressed"),
        ("a.raw.XZ", "raw", "compressed"),
        ("a.img.zst", "raw", "compressed"),
        ("a.iso.bz2", "iso", "compressed"),
        ("a.ami", "ami", "ami"),
        ("a.aki", "aki", "aki"),
        ("a.ari", "ari", "ari"),
    ],
)
async def test_the_ending_of_a_file_tells_its_container(
    service: Service, tmp_path: Path, name: str, disk_format: str, container: str
) -> None:
    """Of which Glance would not know the virtual size either."""
    (tmp_path / name).write_bytes(DATA)
    (tmp_path / "notes.txt.gz").write_bytes(DATA)
    image = await service.only()
    assert (image["name"], image["disk_format"]) == ("a", disk_format)
    assert (image["container_format"], image["virtual_size"]) == (container, None)


async def test_a_side_car_names_a_kernel(service: Service, tmp_path: Path) -> None:
    """What an AMI is started by stands in its properties, as in Glance."""
    kernel = str(uuid.uuid4())
    (tmp_path / "a.img").write_bytes(DATA)
    assert "kernel_id" not in await service.only()
    card = {"disk_format": "ami", "kernel_id": kernel}
    (tmp_path / "a.img.json").write_text(json.dumps(card))
    image = await service.only()
    assert (image["disk_format"], image["container_format"]) == ("ami", "ami")
    assert (image["kernel_id"], "ramdisk_id" in image) == (kernel, False)


async def test_the_virtual_size_of_a_qcow2_file_is_in_its_header(
    service: Service, tmp_path: Path
) -> None:
    """It is known without any tool; for a file that only claims to be qcow2 it is null."""
    (tmp_path / "a.qcow2").write_bytes(struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, 7 << 30))
    (tmp_path / "b.qcow2").write_bytes(DATA)
    images = (await service.page())["images"]
    assert [image["virtual_size"] for image in images] == [7 << 30, None]


async def test_the_id_of_a_file_is_the_same_on_every_machine(
    service: Service, tmp_path: Path
) -> None:
    """It follows from the name of the file, so that it may be written into scripts."""
    (tmp_path / "debian.qcow2").write_bytes(DATA)
    assert (await service.only())["id"] == "f080ac27-1a3e-5e00-aef1-cd18ca24b727"


async def test_what_is_no_image_is_not_served(service: Service, tmp_path: Path) -> None:
    """Other endings, hidden files, folders, and links that lead out of the folder."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside.raw"
    outside.write_bytes(DATA)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.raw").write_bytes(DATA)
    (tmp_path / "folder.raw").mkdir()
    (tmp_path / "link.raw").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe.raw")
    assert await service.names() == []


@pytest.mark.parametrize(
    "path",
    [
        "/v2/images/00000000-0000-4000-8000-000000000000",
        "/v2/images/00000000-0000-4000-8000-000000000000/file",
        "/v2/images/debian.raw",
        "/v2/images/..%2f..%2fetc%2fpasswd/file",
        "/v1/images",
    ],
)
async def test_what_is_not_there_is_not_found(service: Service, tmp_path: Path, path: str) -> None:
    """Images have ids, not paths."""
    (tmp_path / "debian.raw").write_bytes(DATA)
    assert await service.status(path) == 404


# The folder changes


async def test_a_new_file_appears_without_a_restart(service: Service, tmp_path: Path) -> None:
    """And one that was removed is gone at once."""
    assert await service.names() == []
    (tmp_path / "new.raw").write_bytes(DATA)
    assert await service.names() == ["new"]
    (tmp_path / "new.raw").unlink()
    assert await service.names() == []


async def test_a_file_that_grew_is_read_again(service: Service, tmp_path: Path) -> None:
    """Size and digest are always those of the same bytes."""
    path = tmp_path / "growing.raw"
    path.write_bytes(DATA)
    await service.only()
    path.write_bytes(DATA + DATA)
    image = await service.only()
    assert image["size"] == 2 * len(DATA)
    assert image["os_hash_value"] == hashlib.sha512(DATA + DATA).hexdigest()


async def test_a_file_is_read_once(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of requests for an unchanged file cost one pass over its bytes."""
    passes = Counter[str]()
    original = hashlib.sha512

    def count() -> object:
        passes.update(["pass"])
        return original()

    monkeypatch.setattr("hashlib.sha512", count)
    (tmp_path / "a.raw").write_bytes(DATA)
    await asyncio.gather(*(service.names() for _ in range(5)))
    assert passes.total() == 1


async def test_data_are_those_of_the_file_that_was_described(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was replaced since is not sent under the metadata of the old one."""
    path = tmp_path / "a.raw"
    path.write_bytes(DATA)
    image_id = (await service.only())["id"]
    original = ImageFolder.open

    async def late(folder: ImageFolder, image: FolderImage) -> BinaryIO | None:
        await asyncio.to_thread(path.write_bytes, b"other")
        return await original(folder, image)

    monkeypatch.setattr(ImageFolder, "open", late)
    status, _, _ = await service.data(image_id)
    assert status == 503


async def test_a_file_that_shrinks_under_way_ends_the_connection(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sees that bytes are missing, and can come back."""
    path = tmp_path / "a.raw"
    path.write_bytes(DATA)
    image_id = (await service.only())["id"]
    original = ImageFolder.open

    async def shrinking(folder: ImageFolder, image: FolderImage) -> BinaryIO | None:
        file = await original(folder, image)
        os.truncate(path, 10)
        return file

    monkeypatch.setattr(ImageFolder, "open", shrinking)
    with pytest.raises(aiohttp.ClientError):
        await service.data(image_id)


# Lists


async def test_a_list_comes_in_pages(service: Service, tmp_path: Path) -> None:
    """Each page names the next one, until there is none."""
    for name in "edcba":
        (tmp_path / f"{name}.raw").write_bytes(name.encode())
    first = await service.page("?limit=2")
    names = [image["name"] for image in first["images"]]
    page = first
    while "next" in page:
        async with service.client.get(page["next"]) as response:
            page = await response.json()
        names += [image["name"] for image in page["images"]]
    assert names == list("abcde")
    assert first["first"] == "/v2/images?limit=2"


async def test_a_list_can_be_asked_for_by_name(service: Service, tmp_path: Path) -> None:
    """Which is how a name becomes an id."""
    for name in "abc":
        (tmp_path / f"{name}.raw").write_bytes(name.encode())
    assert await service.names("?name=b") == ["b"]
    assert await service.names("?name=x") == []


async def test_a_page_may_be_empty(service: Service, tmp_path: Path) -> None:
    """As with Glance, a limit of 0 gives no image and no next page."""
    (tmp_path / "a.raw").write_bytes(b"a")
    page = await service.page("?limit=0")
    assert page["images"] == []
    assert "next" not in page


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=x", "limit=\u00b2", f"limit={'1' * 5000}", "marker=none"]
)
async def test_a_page_that_cannot_be_is_a_bad_request(service: Service, query: str) -> None:
    """As with Glance."""
    assert await service.status(f"/v2/images?{query}") == 400


# Side-cars


async def test_a_side_car_overrides_what_the_file_tells(service: Service, tmp_path: Path) -> None:
    """Name, id, format, rights and limits can be set beside the file."""
    said = {
        "id": "11111111-2222-4333-8444-555555555555",
        "name": "Debian 12",
        "disk_format": "qcow2",
        "visibility": "private",
        "min_disk": 4,
    }
    (tmp_path / "a.img").write_bytes(DATA)
    (tmp_path / "a.img.json").write_text(json.dumps(said))
    image = await service.only()
    assert {key: image[key] for key in said} == said


async def test_a_hidden_image_is_there_for_whoever_knows_it(
    service: Service, tmp_path: Path
) -> None:
    """It stands in no list unless asked for, and can be downloaded."""
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "a.raw.json").write_text(json.dumps({"os_hidden": True}))
    assert await service.names() == []
    [image] = (await service.page("?os_hidden=true"))["images"]
    assert await service.data(image["id"]) == (200, None, DATA)


@pytest.mark.parametrize(("status", "answer"), [("deactivated", 403), ("queued", 204)])
async def test_an_image_that_is_not_active_gives_no_data(
    service: Service, tmp_path: Path, status: str, answer: int
) -> None:
    """With the status that Glance has for it."""
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "a.raw.json").write_text(json.dumps({"status": status}))
    image = await service.only()
    assert image["status"] == status
    assert await service.status(image["file"]) == answer


async def test_a_side_car_may_carry_a_signature(service: Service, tmp_path: Path) -> None:
    """An image may be signed without an OpenStack; what is not given is not there."""
    signed = {
        "img_signature": "YQ==",
        "img_signature_hash_method": "SHA-256",
        "img_signature_key_type": "RSA-PSS",
        "img_signature_certificate_uuid": str(uuid.uuid4()),
    }
    (tmp_path / "a.raw").write_bytes(DATA)
    assert not any(key.startswith("img_") for key in await service.only())
    (tmp_path / "a.raw.json").write_text(json.dumps(signed))
    image = await service.only()
    assert {key: image.get(key) for key in signed} == signed


async def test_what_is_wrong_with_a_side_car_is_told(service: Service, tmp_path: Path) -> None:
    """The log names the key, in one short line."""
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "a.raw.json").write_text('{"disk_format": "ploop", "os_hiden": true}')
    with structlog.testing.capture_logs() as lines:
        assert await service.names() == []
    (problem,) = [line["problem"] for line in lines if line["event"] == "side_car_refused"]
    assert problem.startswith("disk_format: must be raw, qcow2, ")
    assert problem.endswith(' or ari, and not "ploop"; os_hiden: unknown key')


@pytest.mark.parametrize(
    "text", ["", "[]", '{"id": "../x"}', '{"os_hiden": true}', '{"min_disk": "4"}', '{"status": 1}']
)
async def test_a_side_car_that_cannot_be_used_hides_its_image(
    service: Service, tmp_path: Path, text: str
) -> None:
    """A mistake must not make a private image public; it shows once the side-car is mended."""
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "a.raw.json").write_text(text)
    assert await service.names() == []
    (tmp_path / "a.raw.json").write_text('{"name": "mended"}')
    assert await service.names() == ["mended"]


async def test_a_side_car_is_no_link(service: Service, tmp_path: Path) -> None:
    """Nothing outside of the folder is read."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    outside.write_text("{}")
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "a.raw.json").symlink_to(outside)
    assert await service.names() == []


async def test_of_two_files_with_one_id_the_first_is_served(
    service: Service, tmp_path: Path
) -> None:
    """In the order of their names, at every request."""
    card = json.dumps({"id": "11111111-2222-4333-8444-555555555555"})
    for name in "ba":
        (tmp_path / f"{name}.raw").write_bytes(DATA)
        (tmp_path / f"{name}.raw.json").write_text(card)
    assert await service.names() == ["a"]


# Data


@pytest.fixture
async def image_id(service: Service, tmp_path: Path) -> str:
    """Give the id of an image with ``DATA``."""
    (tmp_path / "a.raw").write_bytes(DATA)
    return str((await service.only())["id"])


SIZE = len(DATA)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=1000-", 1000, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        ("bytes=10-9999999", 10, SIZE - 1),
    ],
)
async def test_a_part_can_be_asked_for(
    service: Service, image_id: str, wanted: str, first: int, last: int
) -> None:
    """The answer says which part it is."""
    expected = (206, f"bytes {first}-{last}/{SIZE}", DATA[first : last + 1])
    assert await service.data(image_id, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "status"),
    [("bytes=999999999-", 416), ("bytes=x", 416), ("bytes=0-1,5-6", 400)],
)
async def test_a_part_that_cannot_be_is_refused(
    service: Service, image_id: str, wanted: str, status: int
) -> None:
    """With the statuses that Glance has for it, and an error in HTML."""
    answer, _, body = await service.data(image_id, wanted)
    assert answer == status
    assert body.startswith(b"<html>")


async def test_data_bear_the_checksum_of_the_whole(service: Service, image_id: str) -> None:
    """In hex, and of the whole image for a part as well, as from Glance."""
    path = f"/v2/images/{image_id}/file"
    async with service.client.get(path, headers={"Range": "bytes=0-0"}) as response:
        checksum = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
        assert response.headers["Content-MD5"] == checksum


async def test_data_have_no_head(service: Service, image_id: str) -> None:
    """As with Glance."""
    async with service.client.head(f"/v2/images/{image_id}/file") as response:
        assert response.status == 405


async def test_an_empty_file_is_an_empty_image(service: Service, tmp_path: Path) -> None:
    """It has a size, a digest and no byte."""
    (tmp_path / "a.raw").write_bytes(b"")
    image = await service.only()
    assert (image["status"], image["size"]) == ("active", 0)
    assert await service.data(image["id"]) == (200, None, b"")


async def test_downloads_are_counted(service: Service, image_id: str) -> None:
    """Whole ones only: a check of access and the rest after a cut are none."""
    await service.data(image_id)
    await service.data(image_id, "bytes=0-0")
    await service.data(image_id, "bytes=5-")
    await service.data(image_id)
    downloads = service.app[imageserver.DOWNLOADS]
    assert downloads == {image_id: 2}


# The command


async def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """It tells where it listens once it does, and gives the address back at its end."""
    (tmp_path / "a.raw").write_bytes(DATA)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        imageserver.serve(tmp_path, "127.0.0.1", 0, ready=listening.set_result)
    )
    url = await listening
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v2/images") as response:
        assert [image["name"] for image in (await response.json())["images"]] == ["a"]
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        await imageserver.serve(tmp_path, "127.0.0.1", port)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_it_needs_a_folder(tmp_path: Path) -> None:
    """A path that is none is named."""
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        await imageserver.serve(tmp_path / "nowhere", "127.0.0.1", 0)
