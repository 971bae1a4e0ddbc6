"""Requests are read strictly: what is not understood is refused, with the field's name."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from cacheagent.api.requests import MAX_SIZE, DiskRequest
from cacheagent.errors import InvalidRequestError
from cacheagent.model import DiskFormat, DiskMode, DiskSpec, FileSystem, ImageId
from tests.fakes.services import IMAGE, INSTANCE

if TYPE_CHECKING:
    from tests.api.conftest import Ask
    from tests.fakes.services import FakeServices

DISK = f"/v1/instances/{INSTANCE}/disks/root"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"image_id": IMAGE, "colour": "red"}, ["colour"]),
        ({"image_id": IMAGE, "size_bytes": "20"}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": 20.0}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": True}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": 0}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": -512}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": MAX_SIZE + 1}, ["size_bytes"]),
        ({"image_id": IMAGE, "size_bytes": 10**400}, ["size_bytes"]),
        ({"image_id": "debian"}, ["image_id"]),
        ({"image_id": IMAGE.upper()}, ["image_id"]),
        ({"image_id": IMAGE + "\n"}, ["image_id"]),
        ({"image_id": 7}, ["image_id"]),
        ({"image_id": IMAGE, "format": "vmdk"}, ["format"]),
        ({"image_id": IMAGE, "format": None}, ["format"]),
        ({"image_id": IMAGE, "mode": "linked"}, ["mode"]),
        ({"image_id": IMAGE, "format": "raw", "mode": "overlay"}, ["mode"]),
        ({"size_bytes": 512, "mode": "overlay"}, ["mode"]),
        ({}, ["size_bytes"]),
        ({"image_id": IMAGE, "filesystem": "ext4", "label": "a"}, ["filesystem", "label"]),
        ({"size_bytes": 512, "label": "a"}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ntfs"}, ["filesystem"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": "-O"}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": "a b"}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": "a\n"}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": ""}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": "a" * 17}, ["label"]),
        ({"size_bytes": 512, "filesystem": "vfat", "label": "a" * 12}, ["label"]),
        ({"size_bytes": 512, "filesystem": "vfat", "label": "a.b"}, ["label"]),
        ({"size_bytes": 512, "filesystem": "ext4", "label": "_a"}, ["label"]),
        ({"mode": "overlay"}, ["mode", "size_bytes"]),
        ([], ["body"]),
    ],
)
async def test_a_body_that_does_not_fit_is_a_400(
    ask: Ask, services: FakeServices, body: object, fields: list[str]
) -> None:
    """Every wrong field is named, and nothing is done."""
    answer = await ask("PUT", DISK, json=body)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["type"]) == (400, "urn:cacheagent:invalid-request")
    assert [error["field"] for error in problem["errors"]] == fields
    assert services.script.calls == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"{} {}",
        b'{"size_bytes": NaN}',
        b'{"size_bytes": 512, "size_bytes": 1024}',
        b'{"size_bytes": 512, "\\u0073ize_bytes": 512}',
        b'{"label": "\xff", "size_bytes": 512}',
        b"[" * 60000,
        b'{"label": ' + b"[" * 60000,
        b'{"size_bytes": ' + b"9" * 60000 + b"}",
        b'\xef\xbb\xbf{"size_bytes": 512}',
    ],
)
async def test_a_text_that_is_no_clean_json_is_a_400(
    ask: Ask, services: FakeServices, text: bytes
) -> None:
    """Broken, doubled or endless JSON is refused and never half read."""
    answer = await ask("PUT", DISK, data=text, headers=JSON)
    assert answer.status == 400
    assert services.script.calls == []


async def test_a_body_of_another_type_is_a_400(ask: Ask, services: FakeServices) -> None:
    """Only JSON that says that it is JSON is read."""
    answer = await ask("PUT", DISK, data=json.dumps({"image_id": IMAGE}))
    problem = await answer.json(content_type=None)
    assert problem["errors"] == [{"field": "Content-Type", "problem": "is not application/json"}]
    assert services.script.calls == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_64_kib_is_a_400(ask: Ask, *, chunked: bool) -> None:
    """A body that is too long is refused, whether it tells its length or not."""
    text = json.dumps({"image_id": IMAGE}).encode()
    padded = text + b" " * (64 * 1024 + 1 - len(text))
    answer = await ask("PUT", DISK, data=padded, headers=JSON, chunked=chunked or None)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["errors"][0]["field"]) == (400, "body")


async def test_a_body_of_64_kib_is_read(ask: Ask) -> None:
    """The limit itself is still allowed."""
    text = json.dumps({"image_id": IMAGE}).encode()
    answer = await ask("PUT", DISK, data=text + b" " * (64 * 1024 - len(text)), headers=JSON)
    assert answer.status == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", DISK),
        ("DELETE", DISK),
        ("PUT", f"/v1/images/{IMAGE}/pin"),
        ("GET", "/v1/status"),
    ],
)
async def test_a_body_where_none_belongs_is_a_400(
    ask: Ask, services: FakeServices, method: str, path: str
) -> None:
    """Whoever sends a body means something by it: it is not dropped in silence."""
    answer = await ask(method, path, json={})
    assert (answer.status, services.script.calls) == (400, [])


@pytest.mark.parametrize(
    ("query", "field"), [("?limit=5", "limit"), ("?a=1&b=2", "a"), ("?=", "query"), ("?&", "query")]
)
async def test_an_unknown_parameter_is_a_400(ask: Ask, query: str, field: str) -> None:
    """No parameter of a query string is ignored."""
    answer = await ask("GET", f"/v1/images{query}")
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/images/debian", "image_id"),
        (f"/v1/images/{IMAGE.upper()}", "image_id"),
        ("/v1/instances/..%2F..%2Fetc", "instance_id"),
        (f"/v1/instances/{INSTANCE}/disks/Root", "name"),
        (f"/v1/instances/{INSTANCE}/disks/..%2Froot", "name"),
        (f"/v1/instances/{INSTANCE}/disks/root%0A", "name"),
        (f"/v1/instances/{INSTANCE}/disks/{'a' * 33}", "name"),
    ],
)
async def test_a_name_that_is_none_is_a_400(
    ask: Ask, services: FakeServices, path: str, field: str
) -> None:
    """Identifiers are parsed before anything else sees them."""
    answer = await ask("GET", path)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["errors"][0]["field"]) == (400, field)
    assert services.script.calls == []


@pytest.mark.parametrize(
    ("body", "spec"),
    [
        ({"image_id": IMAGE}, DiskSpec(image_id=IMAGE, size=None)),
        (
            {"image_id": IMAGE, "format": "qcow2", "mode": "overlay"},
            DiskSpec(image_id=IMAGE, size=None),
        ),
        (
            {"image_id": IMAGE, "size_bytes": None, "mode": None, "label": None},
            DiskSpec(image_id=IMAGE, size=None),
        ),
        (
            {"image_id": IMAGE, "mode": "full", "size_bytes": 513},
            DiskSpec(image_id=IMAGE, size=513, mode=DiskMode.FULL),
        ),
        (
            {"image_id": IMAGE, "format": "raw"},
            DiskSpec(image_id=IMAGE, size=None, format=DiskFormat.RAW, mode=DiskMode.FULL),
        ),
        (
            {"size_bytes": MAX_SIZE},
            DiskSpec(image_id=None, size=MAX_SIZE, mode=DiskMode.FULL),
        ),
        (
            {"size_bytes": 512, "format": "raw", "filesystem": "swap", "label": "swap-0"},
            DiskSpec(
                image_id=None,
                size=512,
                format=DiskFormat.RAW,
                mode=DiskMode.FULL,
                filesystem=FileSystem.SWAP,
                label="swap-0",
            ),
        ),
    ],
)
def test_a_request_means_one_specification(body: dict[str, Any], spec: DiskSpec) -> None:
    """Defaults are filled in: an image gives an overlay; raw and blank disks are full."""
    assert DiskRequest.model_validate_json(json.dumps(body)).to_spec() == spec


def test_all_contradictions_are_told_at_once() -> None:
    """Whoever asks wrongly in two ways learns both."""
    request = DiskRequest(image_id=ImageId(IMAGE), filesystem=FileSystem.XFS, label="a")
    with pytest.raises(InvalidRequestError) as caught:
        request.to_spec()
    assert [field for field, _ in caught.value.problems] == ["filesystem", "label"]


@pytest.mark.parametrize("encoding", ["deflate", "gzip", "br", "zstd", "identity, gzip"])
async def test_an_encoded_body_is_a_400(
    ask: Ask, services: FakeServices, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    """Nothing is decompressed, so nothing grows; and nobody is told that something broke."""
    bomb = zlib.compress(b" " * 10_000_000)
    headers = JSON | {"Content-Encoding": encoding}
    answer = await ask("PUT", DISK, data=bomb, headers=headers)
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["errors"][0]["field"]) == (400, "Content-Encoding")
    assert services.script.calls == []
    assert caplog.records == []
