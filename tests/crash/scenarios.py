"""What a daemon is killed in the middle of: each a state, and a deed that begins from it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.crash.failpoints import Intrusion
from tests.crash.world import Image, Wanted, World
from tests.e2e.agent import Answer

MIB = 1 << 20
ONE = "6d1c1f3a-0c55-4b7e-9d53-0a53c0a1b001"
OTHER = "6d1c1f3a-0c55-4b7e-9d53-0a53c0a1b002"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images that there are: in two blocks, in qcow2, the first again, a small one, a bad one.

    The ``bad`` one is not of the format that Glance says. Two lie in containers.
    """

    raw: Image
    qcow2: Image
    twin: Image
    small: Image
    bad: Image
    stream: Image
    archive: Image

    def all(self) -> tuple[Image, ...]:
        """Give all of them."""
        plain = (self.raw, self.qcow2, self.twin, self.small, self.bad)
        return (*plain, self.stream, self.archive)


async def _nothing(_world: World, _images: Images) -> None:
    pass


def _untouched(_world: World) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A deed, and what leads to it.

    ``before`` is done by a daemon that nobody kills (None: there was none), ``meanwhile`` to its
    folder once it has ended, and ``intrusion`` is what somebody does in the midst of the deed.
    ``deed`` may be repeated, and whoever can do it answers with one of ``statuses``; None: the
    start alone is the deed. ``after`` looks at what came of it.
    """

    name: str
    before: Callable[[World, Images], Awaitable[object]] | None = _nothing
    meanwhile: Callable[[World], None] = _untouched
    intrusion: Callable[[World], Intrusion] | None = None
    deed: Callable[[World, Images], Awaitable[Answer]] | None = None
    after: Callable[[World, Images], Awaitable[None]] = _nothing
    statuses: frozenset[int] = frozenset({200, 201, 204})


def _disk(image: Image | None, key: str = f"{ONE}/root", **spec: object) -> Wanted:
    return Wanted(key=key, image=image, spec={"size_bytes": 8 * MIB, **spec})


def overlay(images: Images, key: str = f"{ONE}/root") -> Wanted:
    """Want an overlay of the small image."""
    return _disk(images.small, key)


async def _used(world: World, images: Images) -> None:
    """Let the small image be here, and be used by a disk."""
    await world.create(overlay(images, f"{OTHER}/root"))


async def _pull_small(world: World, images: Images) -> None:
    await world.pull(images.small)


async def _pull_raw(world: World, images: Images) -> None:
    await world.pull(images.raw)


async def _pull_bad(world: World, images: Images) -> Answer:
    return await world.pull(images.bad)


async def _is_in_quarantine(world: World, images: Images) -> None:
    """Check that one file is kept, of the newest refusal, with its record."""
    names = sorted(path.name for path in (world.agent.state / "quarantine").iterdir())
    assert [name.partition(".")[0] for name in names] == [images.bad.image_id] * 2
    assert names[1] == f"{names[0]}.json"


async def _quarantine_is_empty(world: World, _images: Images) -> None:
    assert list((world.agent.state / "quarantine").iterdir()) == []


async def _pull_qcow2(world: World, images: Images) -> None:
    await world.pull(images.qcow2)


async def _two_disks(world: World, images: Images) -> None:
    await world.create(overlay(images))
    await world.create(_disk(None, f"{ONE}/data"))
    await world.create(_disk(None, f"{OTHER}/data"))


async def _one_overlay_after_the_other(world: World, images: Images) -> Answer:
    """Let the first bring the template to hand."""
    await world.create(overlay(images, f"{OTHER}/first"))
    return await world.create(overlay(images, f"{OTHER}/second"))


async def _unused(world: World, images: Images) -> None:
    """Let an image be here that was used and is not any more, beside one that is."""
    await _used(world, images)
    await world.create(_disk(images.qcow2))
    await world.remove(_disk(images.qcow2))


async def _overlay_aside(world: World, images: Images) -> None:
    """Let an image be here that nobody uses, and an overlay of it lie where nobody looks."""
    await _used(world, images)
    made = await world.create(_disk(images.qcow2))
    shutil.copy(made.body["path"], world.agent.folder / "aside")
    await world.remove(_disk(images.qcow2))


def _overlay_appears(world: World) -> Intrusion:
    """Put the overlay where it counts, when its base is on its way out."""
    return Intrusion(
        before="os.fsync trash",
        source=str(world.agent.folder / "aside"),
        target=str(world.agent.state / "instances" / ONE / "root.qcow2"),
    )


async def _of_each(world: World, images: Images) -> None:
    """Let bases and disks of all kinds be here, and an image that nobody uses."""
    await _two_disks(world, images)
    await world.pull(images.raw)
    await world.pull(images.twin)
    await world.create(_disk(images.qcow2, f"{OTHER}/root"))
    await world.create(_disk(images.small, f"{OTHER}/copy", mode="full", format="raw"))


async def _of_each_unused(world: World, images: Images) -> None:
    """Let two bases be here that nobody uses, one of them for two images."""
    await _of_each(world, images)
    await world.remove(_disk(images.qcow2, f"{OTHER}/root"))


async def _create_in_background(world: World, images: Images) -> Answer:
    wanted = _disk(images.qcow2)
    await world.create(wanted, prefer="respond-async")
    await world.settled()
    return await world.create(wanted)


async def _is_gone(world: World, images: Images) -> None:
    left = {image["image_id"] for image in await world.known_images()}
    assert images.qcow2.image_id not in left


async def _is_there_if_used(world: World, images: Images) -> None:
    """Check that an overlay which was there in time has its base."""
    known = {image["image_id"] for image in await world.known_images()}
    assert (f"{ONE}/root" in await world.known_disks()) <= (images.qcow2.image_id in known)


async def _is_pinned(world: World, images: Images) -> None:
    path = f"/v1/images/{images.small.image_id}"
    assert (await world.agent.ask("GET", path)).body["pinned"] is True
    assert (await world.agent.ask("DELETE", f"{path}/pin")).status == 204


def _lose_catalog(world: World) -> None:
    for path in world.agent.state.glob("catalog.db*"):
        path.unlink()


def _lose_catalog_amid_leftovers(world: World) -> None:
    """Leave what crashes may have left, and no catalog."""
    _lose_catalog(world)
    state = world.agent.state
    base = next(path for path in (state / "bases").iterdir() if path.suffix == ".raw")
    template = next((state / "templates").iterdir())
    shutil.copy(base, state / "trash" / base.name)
    shutil.copy(base, state / "ingest" / f"{ONE}.part")
    shutil.copy(base, state / "ingest" / f"{ONE}.raw")
    shutil.copy(base, state / "ingest" / f"{ONE}.unpacked")
    (state / "ingest" / f".{ONE}.part.json.making").touch()
    (state / "bases" / f".{base.name}.json.making").touch()
    (state / "templates" / f".{template.name}.making").touch()
    (state / "instances" / ONE / ".root.qcow2.making").touch()


def _halve(world: World) -> None:
    """Set rows back to what they were in the midst of the work, and some files with them."""
    state = world.agent.state
    with sqlite3.connect(state / "catalog.db") as catalog:
        catalog.execute("UPDATE disks SET state = 'pending'")
        catalog.execute("UPDATE bases SET state = 'evicting'")
        rows = catalog.execute("SELECT base_id, format FROM bases WHERE size > ?", (4 * MIB,))
        for base_id, disk_format in rows.fetchall():
            name = f"{base_id}.{disk_format}"
            (state / "bases" / name).rename(state / "trash" / name)
    catalog.close()
    (state / "instances" / OTHER / "copy.raw").unlink()
    world.promised.pop(f"{OTHER}/copy")


def _forget_base(world: World) -> None:
    """Make an image that is here one that is asked for, and whose bytes are half here."""
    state = world.agent.state
    (base,) = (path for path in (state / "bases").iterdir() if path.suffix == ".raw")
    with sqlite3.connect(state / "catalog.db") as catalog:
        (image_id,) = catalog.execute("SELECT image_id FROM images").fetchone()
        catalog.execute("UPDATE images SET base_id = NULL")
        catalog.execute("DELETE FROM bases")
    catalog.close()
    base.with_name(f"{base.name}.json").unlink()
    base.rename(state / "ingest" / f"{image_id}.part")


SCENARIOS = (
    Scenario(name="the first start", before=None),
    Scenario(
        name="a start without catalog, amid leftovers",
        before=_of_each,
        meanwhile=_lose_catalog_amid_leftovers,
    ),
    Scenario(name="a start amid work that was half done", before=_of_each, meanwhile=_halve),
    Scenario(
        name="a start that goes on with an ingest",
        before=_pull_raw,
        meanwhile=_forget_base,
    ),
    Scenario(
        name="ingest",
        deed=lambda world, images: world.pull(images.raw),
    ),
    Scenario(
        name="ingest with a conversion",
        before=_used,
        deed=lambda world, images: world.pull(images.qcow2),
    ),
    Scenario(
        name="ingest of a compressed image",
        deed=lambda world, images: world.pull(images.stream),
    ),
    Scenario(
        name="ingest of an archive",
        deed=lambda world, images: world.pull(images.archive),
    ),
    Scenario(
        name="ingest of content that is here",
        before=_pull_raw,
        deed=lambda world, images: world.pull(images.twin),
    ),
    Scenario(
        name="ingest of an image that is refused",
        deed=_pull_bad,
        after=_is_in_quarantine,
        statuses=frozenset({422}),
    ),
    Scenario(
        name="pass that drops what was refused",
        before=_pull_bad,
        deed=lambda world, _: world.agent.ask("POST", "/v1/prune", {"free_bytes": 1 << 40}),
        after=_quarantine_is_empty,
    ),
    Scenario(
        name="disk in the background, of an image that is not here",
        deed=_create_in_background,
    ),
    Scenario(
        name="overlay, and its template",
        before=_pull_small,
        deed=lambda world, images: world.create(overlay(images)),
    ),
    Scenario(
        name="overlay, cloned",
        before=_used,
        deed=lambda world, images: world.create(overlay(images, f"{OTHER}/second")),
    ),
    Scenario(
        name="overlay of what is at hand",
        before=_used,
        deed=_one_overlay_after_the_other,
    ),
    Scenario(
        name="raw copy",
        before=_used,
        deed=lambda world, images: world.create(_disk(images.small, mode="full", format="raw")),
    ),
    Scenario(
        name="qcow2 copy",
        before=_used,
        deed=lambda world, images: world.create(_disk(images.small, mode="full")),
    ),
    Scenario(name="blank disk", deed=lambda world, _: world.create(_disk(None))),
    Scenario(
        name="blank raw disk",
        deed=lambda world, _: world.create(_disk(None, format="raw")),
    ),
    Scenario(
        name="blank disk with a file system",
        deed=lambda world, _: world.create(_disk(None, filesystem="ext4")),
    ),
    Scenario(
        name="removal of a disk",
        before=_used,
        deed=lambda world, images: world.remove(overlay(images, f"{OTHER}/root")),
    ),
    Scenario(
        name="removal of an instance",
        before=_two_disks,
        deed=lambda world, _: world.remove_instance(ONE),
    ),
    Scenario(
        name="eviction",
        before=_unused,
        deed=lambda world, images: world.evict(images.qcow2),
        after=_is_gone,
        statuses=frozenset({204, 404}),
    ),
    Scenario(
        name="eviction of two images of one content",
        before=_of_each,
        deed=lambda world, images: world.evict(images.twin),
        statuses=frozenset({204, 404}),
    ),
    Scenario(
        name="eviction that is taken back",
        before=_overlay_aside,
        intrusion=_overlay_appears,
        deed=lambda world, images: world.evict(images.qcow2),
        after=_is_there_if_used,
        statuses=frozenset({204, 404, 409}),
    ),
    Scenario(
        name="pass of eviction",
        before=_of_each_unused,
        deed=lambda world, _: world.agent.ask("POST", "/v1/prune", {"free_bytes": 1 << 40}),
    ),
    Scenario(
        name="first reading of a base that was converted",
        before=_pull_qcow2,
        deed=lambda world, images: world.verify(images.qcow2),
    ),
    Scenario(
        name="pin",
        before=_pull_small,
        deed=lambda world, images: world.agent.ask(
            "PUT", f"/v1/images/{images.small.image_id}/pin"
        ),
        after=_is_pinned,
    ),
)
