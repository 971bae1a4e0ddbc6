"""The files of refused images, whatever somebody planted beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import quarantine
from cacheagent.backends.store.quarantine import RefusalRecord
from cacheagent.policy.layout import Layout, refused_name
from cacheagent.policy.quarantine import Contents
from tests.fakes.values import base_id, image_id

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = refused_name(image_id(1), AT, "corrupt")
RECORD = RefusalRecord(
    image_id=image_id(1),
    reason="corrupt",
    detail="it is marked corrupt",
    disk_format="qcow2",
    container_format="bare",
    size=3,
    algorithm=None,
    digest=None,
    at=AT,
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Give the folders that matter here."""
    made = Layout(state_dir=tmp_path, instances_dir=tmp_path / "instances")
    made.quarantine.mkdir()
    made.ingest.mkdir()
    return made


def part(layout: Layout) -> Path:
    """Write what has come of the image."""
    path = layout.part(image_id(1))
    path.write_bytes(b"bad")
    return path


def test_what_is_kept_is_read_back(layout: Layout) -> None:
    """File and record lie side by side, and both go together."""
    quarantine.keep(layout, part(layout), NAME, RECORD)
    assert layout.refused(NAME).read_bytes() == b"bad"
    assert quarantine.read_records(layout, [NAME]) == {NAME: RECORD}
    (found,) = quarantine.contents(layout).refused
    assert found.name == NAME
    quarantine.drop(layout, [NAME, NAME])
    assert list(layout.quarantine.iterdir()) == []


def test_a_link_in_place_of_the_image_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    """Nobody has the agent change the rights of a file of the host, or move it."""
    victim = tmp_path / "victim"
    victim.write_text("of the host")
    victim.chmod(0o644)
    layout.part(image_id(1)).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        quarantine.keep(layout, layout.part(image_id(1)), NAME, RECORD)
    assert victim.stat().st_mode & 0o777 == 0o644
    assert list(layout.quarantine.iterdir()) == []


def test_links_in_quarantine_lead_nowhere(layout: Layout, tmp_path: Path) -> None:
    """A link under a name of ours is neither read, nor written through, nor counted."""
    victim = tmp_path / "victim"
    victim.write_text("of the host")
    making = layout.refused_record(NAME).with_name(f".{NAME}.json.making")
    for planted in (layout.refused(NAME), layout.refused_record(NAME), making):
        planted.symlink_to(victim)
    assert quarantine.contents(layout) == Contents()
    assert quarantine.read_records(layout, [NAME]) == {NAME: None}
    quarantine.keep(layout, part(layout), NAME, RECORD)
    assert quarantine.read_records(layout, [NAME]) == {NAME: RECORD}
    assert victim.read_text() == "of the host"


def test_what_is_not_ours_is_not_counted(layout: Layout) -> None:
    """Folders and notes of somebody are no refused images; damaged bases count as such."""
    layout.refused(NAME).mkdir()
    (layout.quarantine / "notes").write_text("x" * 5000)
    damaged = layout.quarantine / f"{base_id(1)}.raw"
    damaged.write_text("x" * 5000)
    found = quarantine.contents(layout)
    assert (found.refused, found.damaged) == ((), damaged.stat().st_blocks * 512)


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"image_id": 3}', "x" * 70_000])
def test_a_broken_record_is_none(layout: Layout, text: str) -> None:
    """Whatever lies there in its place, only the words are missing."""
    layout.refused_record(NAME).write_text(text)
    assert quarantine.read_records(layout, [NAME]) == {NAME: None}
