"""What is asked of an agent, what it has promised, and whether its folders and answers agree."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacheagent.backends import qcow2
from cacheagent.backends.store.manifest import load
from tests.crash.agent import ForkedAgent
from tests.e2e import qemu

if TYPE_CHECKING:
    from tests.e2e.agent import Answer

SETTLED_SECONDS = 20

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of the tests: the bytes that Glance has, and the disk that they mean.

    ``base_id`` is what the agent has to call its base; of a ``refused`` one there is to be none.
    """

    image_id: str
    base_id: str
    disk_format: str
    data: bytes = field(repr=False)
    content: bytes = field(repr=False)
    container_format: str = "bare"
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A disk that was asked for: ``instance/name``, its image if it has one, and the rest."""

    key: str
    image: Image | None
    spec: Facts

    @property
    def path(self) -> str:
        """Where the API has it."""
        instance_id, _, name = self.key.partition("/")
        return f"/v1/instances/{instance_id}/disks/{name}"

    @property
    def body(self) -> Facts:
        """What is sent to ask for it."""
        return self.spec if self.image is None else {"image_id": self.image.image_id, **self.spec}


@dataclass(kw_only=True)
class World:
    """An agent, the images that it can get, and the disks that it said were made."""

    agent: ForkedAgent
    images: tuple[Image, ...]
    promised: dict[str, Wanted] = field(default_factory=dict)
    _looked_at: set[tuple[str, Image | None]] = field(default_factory=set)

    # --- what is asked -------------------------------------------------------------------------

    async def pull(self, image: Image) -> Answer:
        """Bring an image in."""
        return await self.agent.ask("PUT", f"/v1/images/{image.image_id}", {"wait": True})

    async def evict(self, image: Image) -> Answer:
        """Remove the base of an image."""
        return await self.agent.ask("DELETE", f"/v1/images/{image.image_id}")

    async def verify(self, image: Image) -> Answer:
        """Let the base of an image be read again."""
        return await self.agent.ask("POST", f"/v1/images/{image.image_id}/verify")

    async def create(self, wanted: Wanted, *, prefer: str | None = None) -> Answer:
        """Ask for a disk, and take the agent by its word."""
        headers = None if prefer is None else {"Prefer": prefer}
        answer = await self.agent.ask("PUT", wanted.path, wanted.body, headers=headers)
        if answer.status in {200, 201} and answer.body["state"] == "ready":
            self.promised[wanted.key] = wanted
        return answer

    async def remove(self, wanted: Wanted) -> Answer:
        """Remove a disk; from the moment this is asked it may be gone."""
        self.promised.pop(wanted.key, None)
        return await self.agent.ask("DELETE", wanted.path)

    async def remove_instance(self, instance_id: str) -> Answer:
        """Remove an instance with all its disks."""
        for key in [key for key in self.promised if key.startswith(instance_id)]:
            del self.promised[key]
        return await self.agent.ask("DELETE", f"/v1/instances/{instance_id}")

    # --- what is there -------------------------------------------------------------------------

    async def known_images(self) -> list[Facts]:
        """Give all images as the API shows them."""
        answer = await self.agent.ask("GET", "/v1/images")
        assert answer.status == 200, answer
        return list(answer.body["images"])

    async def known_disks(self) -> dict[str, Facts]:
        """Give all disks as the API shows them, by ``instance/name``."""
        answer = await self.agent.ask("GET", "/v1/instances")
        assert answer.status == 200, answer
        return {
            f"{disk['instance_id']}/{disk['name']}": disk
            for instance in answer.body["instances"]
            for disk in instance["disks"]
        }

    async def _with_bases(self) -> list[Facts]:
        """Give the images that are to have a base: all but those that were refused."""
        refused = {image.image_id for image in self.images if image.refused}
        return [each for each in await self.known_images() if each["image_id"] not in refused]

    async def settled(self) -> None:
        """Wait until nothing is under way any more; what never comes to an end is stuck."""
        async with asyncio.timeout(SETTLED_SECONDS):
            while await self._under_way():
                pass

    async def _under_way(self) -> bool:
        images = {image["state"] for image in await self.known_images()}
        disks = {disk["state"] for disk in (await self.known_disks()).values()}
        return bool(images & {"queued", "downloading", "converting"} or "pending" in disks)

    # --- whether that is right -----------------------------------------------------------------

    async def assert_sound(self) -> None:
        """Check all that a start has to lead back to, whatever came before it."""
        await self._assert_bases()
        await self._assert_disks()
        state = self.agent.state
        assert _names(state / "ingest") == []
        assert _names(state / "trash") == []
        files = {name for name in _names(state / "quarantine") if not name.endswith(".json")}
        assert _names(state / "quarantine") == sorted(files | {f"{name}.json" for name in files})
        unfinished = [path for path in state.rglob("*") if path.name.endswith(".making")]
        assert unfinished == []

    async def _assert_bases(self) -> None:
        """Every base is what its name says, has its manifest, and stands for an image."""
        images = {image.base_id: image for image in self.images}
        listed = {image["base"]["path"]: image for image in await self._with_bases()}
        folder = self.agent.state / "bases"
        bases = [path for path in folder.iterdir() if path.suffix != ".json"]
        assert {str(path) for path in bases} == set(listed)
        assert {f"{path.name}.json" for path in bases} == set(_names(folder, "*.json"))
        for path in bases:
            assert path.read_bytes() == images[path.stem].content
            assert stat.S_IMODE(path.stat().st_mode) == 0o440
            assert listed[str(path)]["state"] == "ready"
            manifest = load(path.with_name(f"{path.name}.json").read_bytes())
            assert manifest is not None
            assert manifest.base.base_id == path.stem

    async def _assert_disks(self) -> None:
        """Every disk that was promised is there and sound, and there is no file without a row."""
        disks = await self.known_disks()
        ready = {key: disk for key, disk in disks.items() if disk["state"] == "ready"}
        assert set(self.promised) <= set(ready)
        assert {disk["state"] for disk in disks.values()} <= {"ready", "failed"}
        assert all(disk["error"] for key, disk in disks.items() if key not in ready)
        folder = self.agent.state / "instances"
        files = {str(path) for path in folder.glob("*/*")}
        assert files == {disk["path"] for disk in ready.values()}
        for key, disk in ready.items():
            await self._assert_disk(disk, self.promised.get(key))

    async def _assert_disk(self, disk: Facts, wanted: Wanted | None) -> None:
        path = Path(disk["path"])
        if disk["format"] == "qcow2":
            header = qcow2.read_header(path)
            assert header.virtual_size == disk["virtual_size_bytes"]
            base = disk["base"] if disk["mode"] == "overlay" else None
            assert header.backing_file == (base["path"] if base else None)
            assert base is None or Path(base["path"]).is_file()
        else:
            assert path.stat().st_size == disk["virtual_size_bytes"]
        if wanted is not None:
            assert disk["virtual_size_bytes"] == wanted.spec["size_bytes"]
        # The bases are what they should be, so equal files are equal disks.
        image = None if wanted is None else wanted.image
        look = (hashlib.sha256(path.read_bytes()).hexdigest(), image)
        if look not in self._looked_at:
            await _look(path, disk["format"], image)
            self._looked_at.add(look)

    # --- to begin and to end with --------------------------------------------------------------

    async def clean_up(self) -> None:
        """Remove all disks and evict all images, after which nothing is left.

        Nor did anything happen that the agent itself did not expect.
        """
        assert await self.agent.metric("unknown_files") == 0
        for key in await self.known_disks():
            assert (await self.remove_instance(key.partition("/")[0])).status == 204
        for image in await self._with_bases():
            gone = await self.agent.ask("DELETE", f"/v1/images/{image['image_id']}")
            assert gone.status in {204, 404}, gone.body
        state = self.agent.state
        assert await self._with_bases() == []
        for folder in ("bases", "ingest", "instances", "trash"):
            assert _names(state / folder) == []
        assert all(name.startswith("blank.") for name in _names(state / "templates"))
        told = [json.loads(line) for line in self.agent.log.splitlines()]
        assert [line for line in told if line["level"] in {"error", "critical"}] == []


async def _look(path: Path, disk_format: str, image: Image | None) -> None:
    """Let QEMU say whether the disk is sound, and begins with the content of the image."""
    if disk_format == "qcow2":
        await qemu.check(str(path))
    if image is not None:
        content = path.parent.parent.parent.parent / "content"
        content.write_bytes(image.content)
        await qemu.qemu_img("compare", "-f", disk_format, "-F", "raw", str(path), str(content))


def _names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))
