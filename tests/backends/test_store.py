"""The store: files that outlive a crash, clones that are true, room that ran out."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cacheagent.backends.store import BLOCK_SIZE, Block, Clone, Manifest, Store, files, manifest
from cacheagent.errors import InsufficientSpaceError, InvalidRequestError, StateDirBusyError
from cacheagent.model import DiskFormat
from cacheagent.policy.layout import Layout, unfinished
from tests.fakes import values

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cacheagent.model import DiskKey, GlanceImage


def make_store(folder: Path) -> Store:
    """Build a store in a folder of the test."""
    layout = Layout(state_dir=folder / "state", instances_dir=folder / "instances")
    return Store(layout, group=None, disk_mode=0o660)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Give a store that is open."""
    one = make_store(tmp_path)
    await one.open()
    yield one
    await one.close()


async def test_second_agent_is_refused(store: Store, tmp_path: Path) -> None:
    """Two agents never work in one state folder; the first one's end makes it free."""
    second = make_store(tmp_path)
    with pytest.raises(StateDirBusyError, match="another agent"):
        await second.open()
    await store.close()
    await second.open()
    await second.close()


async def test_folders_are_closed_to_strangers(store: Store) -> None:
    """Only the agent and its group can look at bases and disks."""
    layout = store.layout
    for folder in (layout.bases, layout.ingest, layout.instances_dir):
        assert folder.stat().st_mode & 0o777 == 0o750


async def test_published_base_is_read_only_and_described(store: Store) -> None:
    """A base can be written by nobody, and its manifest tells all that the catalog knows."""
    source = store.layout.ingest / "made"
    source.write_bytes(b"x" * 8192)
    record = Manifest(base=values.base(1, allocated=0), images=(values.glance_image(1),))
    published = await store.publish(source, record)
    base = store.layout.base(published.base.base_id, DiskFormat.RAW)
    assert base.read_bytes() == b"x" * 8192
    assert base.stat().st_mode & 0o777 == 0o440
    assert published.base.allocated == base.stat().st_blocks * 512
    text = store.layout.manifest(published.base.base_id, DiskFormat.RAW).read_bytes()
    assert manifest.load(text) == published
    assert not source.exists()


def test_damaged_manifest_is_no_manifest() -> None:
    """Half a manifest, or one of something else, is not believed."""
    assert manifest.load(b'{"base": {}}') is None
    assert manifest.load(b"\x00") is None


async def test_trashed_base_goes_with_its_templates(store: Store) -> None:
    """What is evicted leaves nothing behind, and nothing of another base goes with it."""
    layout = store.layout
    kept, gone = values.base(1), values.base(2)
    for base in (kept, gone):
        layout.base(base.base_id, base.format).write_bytes(b"base")
        layout.manifest(base.base_id, base.format).write_bytes(b"{}")
        layout.template(base, DiskFormat.QCOW2, 512, "").write_bytes(b"template")
    await store.trash_base(gone.base_id, gone.format)
    await store.empty_trash()
    left = {path.name for folder in (layout.bases, layout.templates) for path in folder.iterdir()}
    assert left == {
        layout.base(kept.base_id, kept.format).name,
        layout.manifest(kept.base_id, kept.format).name,
        layout.template(kept, DiskFormat.QCOW2, 512, "").name,
    }
    assert list(layout.trash.iterdir()) == []


@pytest.mark.parametrize("moved", ["both", "base"])
async def test_base_comes_back_from_the_trash(store: Store, moved: str) -> None:
    """A base that turns out to be used is put back as it was, wherever its going had come to."""
    layout, base = store.layout, values.base(1)
    file, record = (
        layout.base(base.base_id, base.format),
        layout.manifest(base.base_id, base.format),
    )
    file.write_bytes(b"base")
    record.write_bytes(manifest.dump(Manifest(base=base, images=())))
    await store.trash_base(base.base_id, base.format)
    assert list(layout.bases.iterdir()) == []
    if moved == "base":
        layout.trashed_manifest(base.base_id, base.format).rename(record)
    assert await store.read_manifest(base.base_id, base.format) is not None
    await store.restore_base(base.base_id, base.format)
    assert sorted(layout.bases.iterdir()) == [file, record]
    assert file.read_bytes() == b"base"
    assert list(layout.trash.iterdir()) == []


async def test_base_never_comes_back_over_another(store: Store) -> None:
    """A base that was fetched anew meanwhile stays, and the one in the trash can go."""
    layout, base = store.layout, values.base(1)
    layout.base(base.base_id, base.format).write_bytes(b"old")
    await store.trash_base(base.base_id, base.format)
    layout.base(base.base_id, base.format).write_bytes(b"new")
    await store.restore_base(base.base_id, base.format)
    assert layout.base(base.base_id, base.format).read_bytes() == b"new"
    await store.drop_trashed(base.base_id, base.format)
    assert list(layout.trash.iterdir()) == []


async def test_trash_holds_back_what_is_not_ours(store: Store) -> None:
    """Whatever somebody put into the trash that is no base of ours stays there."""
    layout, base = store.layout, values.base(1)
    layout.base(base.base_id, base.format).write_bytes(b"base")
    (layout.trash / "notes.txt").write_bytes(b"somebody's")
    layout.trashed(values.base(2).base_id, base.format).mkdir()
    await store.trash_base(base.base_id, base.format)
    await store.empty_trash()
    assert {path.name for path in layout.trash.iterdir()} == {
        "notes.txt",
        layout.trashed(values.base(2).base_id, base.format).name,
    }


async def cloned(store: Store, source: Path, key: DiskKey) -> Path:
    """Make a disk of a template, and give its path."""
    template = await store.template(source)
    assert template is not None
    assert await store.clone_disk(
        Clone(template=template, key=key, format=DiskFormat.QCOW2, base=None)
    )
    return store.layout.disk(key, DiskFormat.QCOW2)


async def test_cloned_disk_has_bytes_holes_and_rights(store: Store, tmp_path: Path) -> None:
    """A clone is byte for byte the same, takes no more room, and the hypervisor may write it."""
    source = tmp_path / "template"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"tail")
        file.truncate(4 << 20)
    key = values.disk_key(1)
    path = await cloned(store, source, key)
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_blocks <= source.stat().st_blocks
    assert path.stat().st_mode & 0o777 == 0o660
    assert [entry.name for entry in path.parent.iterdir()] == ["root.qcow2"]


async def test_copy_of_a_base_can_be_stopped(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who no longer wants a copy of a large base waits for one step of it, not for all."""
    source = tmp_path / "base"
    source.write_bytes(os.urandom(4 << 20))
    monkeypatch.setattr(files, "STEP", 4096)
    monkeypatch.setattr(files, "FICLONE", 0)
    under_way, gate = threading.Event(), threading.Event()
    copy_some = files._copy_some  # noqa: SLF001 -- the step that is held up
    steps = []

    def held(*arguments: int) -> int:
        steps.append(arguments)
        under_way.set()
        assert gate.wait(30)
        return copy_some(*arguments)

    monkeypatch.setattr(files, "_copy_some", held)
    target = await store.begin_disk(values.disk_key(1), DiskFormat.RAW)
    copying = asyncio.create_task(store.copy_base(source, target, 4 << 20))
    await asyncio.to_thread(under_way.wait)
    copying.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert len(steps) == 1


async def test_clone_goes_to_a_file_system_of_another_kind(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disks may lie on another file system than the bases, where the kernel clones nothing."""
    source = tmp_path / "template"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"tail")

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    path = await cloned(store, source, values.disk_key(1))
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_blocks <= source.stat().st_blocks


@pytest.mark.parametrize("data", [64 << 10, 1 << 20])
async def test_small_template_is_read_once(store: Store, tmp_path: Path, data: int) -> None:
    """A small template serves from memory, a large one is copied from its file."""
    source = tmp_path / "template"
    content = (os.urandom(data) + bytes(64 << 10)) * 2
    source.write_bytes(content)
    template = await store.template(source)
    assert template is not None
    assert (template.blocks is None) == (data > 64 << 10)
    assert (await cloned(store, source, values.disk_key(1))).read_bytes() == content
    assert await store.template(source) is template


async def test_template_whose_file_changed_is_not_used(store: Store, tmp_path: Path) -> None:
    """What is in memory serves for as long as its file lies there as it was read."""
    source = tmp_path / "template"
    source.write_bytes(b"template")
    template = await store.template(source)
    assert template is not None
    source.write_bytes(b"another template")
    clone = Clone(template=template, key=values.disk_key(1), format=DiskFormat.QCOW2, base=None)
    assert not await store.clone_disk(clone)
    assert not store.layout.instance(clone.key.instance_id).exists()
    assert (await cloned(store, source, clone.key)).read_bytes() == b"another template"


async def test_many_disks_are_cloned_together(store: Store, tmp_path: Path) -> None:
    """One that cannot be made, since its name is taken, keeps no other from being made."""
    source = tmp_path / "template"
    source.write_bytes(b"template")
    await cloned(store, source, values.disk_key(2))
    outcomes = await asyncio.gather(
        *(cloned(store, source, values.disk_key(number)) for number in range(5)),
        return_exceptions=True,
    )
    assert [isinstance(each, FileExistsError) for each in outcomes] == [
        number == 2 for number in range(5)
    ]
    for number in range(5):
        path = store.layout.disk(values.disk_key(number), DiskFormat.QCOW2)
        assert path.read_bytes() == b"template"


async def test_no_template_is_none(store: Store, tmp_path: Path) -> None:
    """A template that is not there, or that is no file, is to be made."""
    assert await store.template(tmp_path / "nothing") is None
    assert await store.template(tmp_path) is None


async def test_no_disk_is_made_of_a_base_that_is_not_as_it_was(
    store: Store, tmp_path: Path
) -> None:
    """An overlay on a base that is missing, or was cut, would be of no use to any guest."""
    source = tmp_path / "template"
    source.write_bytes(b"template")
    template = await store.template(source)
    assert template is not None
    base = values.base(1)
    path = store.layout.base(base.base_id, base.format)
    for length in (None, base.virtual_size - 512, base.virtual_size):
        if length is not None:
            path.touch()
            os.truncate(path, length)
        made = await store.clone_disk(
            Clone(template=template, key=values.disk_key(1), format=DiskFormat.QCOW2, base=base)
        )
        assert made == (length == base.virtual_size)
        assert store.layout.disk(values.disk_key(1), DiskFormat.QCOW2).exists() == made


async def test_disk_never_replaces_a_file_that_is_there(store: Store, tmp_path: Path) -> None:
    """A file that somebody else put at the disk's name stays as it is."""
    key = values.disk_key(1)
    path = store.layout.disk(key, DiskFormat.QCOW2)
    path.parent.mkdir()
    path.write_bytes(b"somebody's")
    source = tmp_path / "template"
    source.write_bytes(b"template")
    with pytest.raises(FileExistsError):
        await cloned(store, source, key)
    await store.abandon_disk(key)
    assert path.read_bytes() == b"somebody's"
    assert [entry.name for entry in path.parent.iterdir()] == ["root.qcow2"]


async def test_removed_disk_takes_its_empty_folder_along(store: Store, tmp_path: Path) -> None:
    """The last disk of an instance takes the folder with it; a foreign file keeps it."""
    source = tmp_path / "template"
    source.write_bytes(b"template")
    for number in (1, 2):
        await cloned(store, source, values.disk_key(number))
    foreign = store.layout.instance(values.instance_id(2)) / "console.log"
    foreign.write_text("boot")
    for number in (1, 2):
        await store.remove_disk(values.disk_key(number), DiskFormat.QCOW2)
    assert not store.layout.instance(values.instance_id(1)).exists()
    assert list(foreign.parent.iterdir()) == [foreign]


async def test_removing_a_disk_that_is_gone_is_no_error(store: Store) -> None:
    """A disk that somebody else has removed can be deleted all the same."""
    await store.remove_disk(values.disk_key(1), DiskFormat.QCOW2)
    assert list(store.layout.instances_dir.iterdir()) == []


def test_full_disk_is_told_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room on the device becomes an answer with what was needed and what there is."""
    found = replace(files.usage(tmp_path), available=42)
    monkeypatch.setattr(files, "usage", lambda _folder: found)
    with (
        pytest.raises(InsufficientSpaceError) as refused,
        files.space_errors(tmp_path, 123),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert refused.value.required_bytes == 123
    assert refused.value.available_bytes == 42


IMAGE = replace(values.glance_image(1), size=4 * BLOCK_SIZE)


def block_of(data: bytes) -> Block:
    """Give a block with this content."""
    block = Block()
    block.rest()[: len(data)] = data
    block.length = len(data)
    return block


async def write_blocks(store: Store, data: bytes, image: GlanceImage = IMAGE) -> None:
    """Let ``data`` arrive as the part of an image, and record how far it came."""
    async with store.part(image) as part:
        for start in range(0, len(data), BLOCK_SIZE):
            block = block_of(data[start : start + BLOCK_SIZE])
            await part.write(block)
        await part.save_record()


async def test_part_goes_on_where_it_was(store: Store) -> None:
    """An ingest that was cut finds the blocks that had arrived, and nothing else."""
    data = os.urandom(2 * BLOCK_SIZE)
    await write_blocks(store, data)
    seen = bytearray()

    async def feed(view: memoryview) -> None:
        seen.extend(view)

    async with store.part(IMAGE) as part:
        assert part.present == len(data)
        await part.read_present(feed)
    assert bytes(seen) == data


async def test_part_of_other_content_is_useless(store: Store) -> None:
    """When the image has changed meanwhile, nothing of the old bytes is kept."""
    await write_blocks(store, os.urandom(BLOCK_SIZE))
    changed = replace(values.glance_image(1), size=4 * BLOCK_SIZE, os_hash_value="f" * 128)
    async with store.part(changed) as part:
        assert part.present == 0
        assert part.path.stat().st_blocks == 0


async def test_part_without_a_sound_record_starts_afresh(store: Store) -> None:
    """A record that a crash has cut is not believed."""
    await write_blocks(store, os.urandom(BLOCK_SIZE))
    store.layout.part_record(values.image_id(1)).write_text('{"size": 16777216, "pres')
    async with store.part(IMAGE) as part:
        assert part.present == 0


async def test_zeros_stand_where_a_failed_try_had_written(store: Store) -> None:
    """Bytes beyond the record, left by a try that was killed, are gone: zeros are not written."""
    image = replace(values.glance_image(1), size=2 * BLOCK_SIZE)
    await write_blocks(store, os.urandom(BLOCK_SIZE), image)
    path = store.layout.part(values.image_id(1))
    with path.open("r+b") as file:
        file.seek(BLOCK_SIZE)
        file.write(os.urandom(BLOCK_SIZE))
    async with store.part(image) as part:
        block = block_of(bytes(BLOCK_SIZE))
        await part.write(block)
    assert path.read_bytes()[BLOCK_SIZE:] == bytes(BLOCK_SIZE)


async def test_part_that_was_nearly_published_can_be_gone_on_from(store: Store) -> None:
    """A crash between the base's rights and its name does not leave a file that nobody can open."""
    await write_blocks(store, os.urandom(BLOCK_SIZE))
    path = store.layout.part(values.image_id(1))
    path.chmod(0o440)
    async with store.part(IMAGE) as part:
        assert part.present == BLOCK_SIZE
        assert path.stat().st_mode & 0o777 == 0o600


async def test_record_that_finds_no_room_is_no_failure(store: Store) -> None:
    """A disk that is full of the download still tells so, and not that a record failed."""
    record = store.layout.part_record(values.image_id(1))
    async with store.part(IMAGE) as part:
        unfinished(record).mkdir()  # nothing can be written there
        await part.save_record()
        assert not record.exists()
    unfinished(record).rmdir()


async def test_zero_runs_stay_holes(store: Store) -> None:
    """An image that is mostly zeros takes little room, and reads as it should."""
    size = 2 * BLOCK_SIZE + 1000
    image = replace(values.glance_image(1), size=size)
    data = bytes(BLOCK_SIZE) + b"\1" * 70_000 + bytes(BLOCK_SIZE - 70_000) + b"\2" * 1000
    async with store.part(image) as part:
        for start in range(0, size, BLOCK_SIZE):
            block = block_of(data[start : start + BLOCK_SIZE])
            await part.write(block)
        assert part.present == size
    path = store.layout.part(values.image_id(1))
    assert path.read_bytes() == data
    assert await store.allocated(path) <= 256 << 10


async def test_discarded_ingest_leaves_nothing(store: Store) -> None:
    """After an ingest was given up, its folder is empty."""
    await write_blocks(store, os.urandom(BLOCK_SIZE))
    assert await store.partial_bytes() >= BLOCK_SIZE
    store.layout.conversion(values.image_id(1)).write_bytes(b"half a disk")
    await store.discard_ingest(values.image_id(1))
    assert list(store.layout.ingest.iterdir()) == []
    assert await store.partial_bytes() == 0


async def test_room_of_a_discarded_ingest_is_waited_for(store: Store) -> None:
    """Who asks for the room that is left is told with what was discarded just before."""
    part = store.layout.part(values.image_id(1))
    part.write_bytes(b"part")
    await store.discard_ingest(values.image_id(1))
    assert not part.exists()
    await store.usage()
    opened = (os.path.realpath(each.path) for each in os.scandir("/proc/self/fd"))
    assert not [path for path in opened if path.startswith(str(part))]


def test_file_that_is_too_long_is_a_mistake_of_the_request() -> None:
    """Sixteen TiB are no disk on ext4, and whoever asked for that is told which field is wrong."""
    with pytest.raises(InvalidRequestError, match="size_bytes"), files.length_errors():
        raise OSError(errno.EFBIG, "File too large")
