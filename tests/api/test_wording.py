"""A mistake in a body is told in words that help to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.services import IMAGE, INSTANCE

if TYPE_CHECKING:
    from tests.api.conftest import Ask

DISK = f"/v1/instances/{INSTANCE}/disks/root"
PULL = f"/v1/images/{IMAGE}"


@pytest.mark.parametrize(
    ("path", "text", "detail"),
    [
        (DISK, '{"size_byte": 512}', "size_byte: unknown field, did you mean size_bytes?"),
        (DISK, '{"colour": "red"}', "colour: unknown field"),
        (DISK, '{"size_bytes": 0}', "size_bytes: must be greater than 0"),
        (DISK, '{"size_bytes": "20"}', "size_bytes: must be a whole number"),
        (DISK, f'{{"size_bytes": {10**20}}}', "size_bytes: must be at most 1125899906842624"),
        (DISK, '{"image_id": 7}', "image_id: must be a text"),
        (DISK, '{"format": "vmdk"}', "format: must be raw or qcow2"),
        (DISK, f'{{"label": "{"a" * 17}"}}', "label: is longer than 16 characters"),
        (DISK, '{"label": "a b"}', "label: must match ^[A-Za-z0-9][A-Za-z0-9_.-]{0,15}$"),
        (DISK, "[]", "body: must be a JSON object"),
        (DISK, '{"size_bytes": 1,}', "body: is not valid JSON, at line 1 column 18"),
        (DISK, "", "body: is missing: a JSON object is expected"),
        (PULL, '{"pin": 1}', "pin: must be true or false"),
        (PULL, '{"pinn": true}', "pinn: unknown field, did you mean pin?"),
        (
            DISK,
            '{"image_id": "debian"}',
            "image_id: is not a UUID in its canonical form (lower case, with hyphens)",
        ),
    ],
)
async def test_a_mistake_is_told_in_one_plain_sentence(
    ask: Ask, path: str, text: str, detail: str
) -> None:
    """Whoever wrote the request knows from the answer what to write instead."""
    answer = await ask("PUT", path, data=text, headers={"Content-Type": "application/json"})
    problem = await answer.json(content_type=None)
    assert (answer.status, problem["detail"]) == (400, detail)


async def test_fields_are_not_guessed_where_nearly_all_are_wrong(ask: Ask) -> None:
    """A body full of fields that nobody knows is refused without much thought."""
    answer = await ask("PUT", DISK, json={f"size_byte{n}": 1 for n in range(1000)})
    problem = await answer.json(content_type=None)
    assert answer.status == 400
    assert {error["problem"] for error in problem["errors"]} == {"unknown field"}
