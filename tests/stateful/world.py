"""What the steps of the test have to do with: the agent, its hosts, and what is done by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cacheagent.errors import InsufficientSpaceError
from cacheagent.service.parts import bounds
from tests.fakes.images import qemu_img
from tests.stateful.agent import Agent
from tests.stateful.checks import Checks, look
from tests.stateful.filesystem import FileSystem
from tests.stateful.images import Image
from tests.stateful.imageservice import ImageService
from tests.stateful.model import ByHand, Model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from cacheagent.model import BaseId
    from tests.service.rig import Rig
    from tests.stateful.model import Seen

T = TypeVar("T")

MARGIN = 512 << 10
"""What files take beside their bytes, and rows in the catalog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all runs of the model share: a file system, images and their service, the log.

    ``steps`` counts the steps of all runs by their names, ``happened`` what came of them;
    ``failures`` are what went wrong in a step.
    """

    system: FileSystem
    images: tuple[Image, ...]
    service: ImageService
    log: list[MutableMapping[str, Any]]
    steps: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class World:
    """An agent on a folder of its own, and the model of what it has to keep."""

    def __init__(self, host: Host, eviction: dict[str, Any]) -> None:
        self.system, self.images, self.service = host.system, host.images, host.service
        self._log, self._happened = host.log, host.happened
        self.folder = host.system.folder / "run"
        self.scan_dir = self.folder / "guests"
        self.scan_dir.mkdir(parents=True)
        # An empty folder looks like a mount point without its file system.
        (self.scan_dir / "mounted").touch()
        self._aside = self.folder / "aside"
        self.service.reset()
        storage = {"state_dir": str(self.folder / "state"), "scan_dirs": [str(self.scan_dir)]}
        self.agent = Agent(
            self.folder, self.service.url, {"storage": storage, "eviction": eviction}
        )
        self._runner = asyncio.Runner()
        self._runner.run(self.agent.start())
        self.model = Model(layout=self.rig.layout)
        policy = bounds(self.rig.parts.config())
        self.checks = Checks(model=self.model, images=self.images, policy=policy)
        self.seen = self.look()
        self._made = 0

    @property
    def rig(self) -> Rig:
        """The services of the agent."""
        return self.agent.rig

    def close(self) -> None:
        """End, and leave nothing on the file system."""
        try:
            self._runner.close()
        finally:
            self.system.clear()
            shutil.rmtree(self.folder)

    # --- the agent -----------------------------------------------------------------------------

    def do(self, work: Callable[[Rig], Awaitable[T]], deeds: int | None = None) -> T:
        """Let the agent do something; see ``Agent.do``."""
        return self._runner.run(self.agent.do(work, deeds))

    def look(self) -> Seen:
        """Look at all the agent knows."""
        return self.do(look)

    def restart(self) -> None:
        """Stop in order, and start again."""
        self._runner.run(self.agent.stop())
        self.start()

    def kill(self) -> None:
        """Kill the agent while it does nothing, and start it again."""
        self._runner.run(self.agent.kill())
        self.start()

    def start(self) -> None:
        """Start again; what is there then is what a crash has left.

        Without a byte to open the catalog with, somebody has to make room first.
        """
        try:
            self._runner.run(self.agent.start())
        except InsufficientSpaceError:
            assert self.system.filled
            self.system.clear()
            self._runner.run(self.agent.start())
        seen = self.look()
        if self.system.filled:
            # Rows without files, which could not go for want of room either.
            self.model.missed(seen)
        self.model.restarted(seen)

    @contextlib.contextmanager
    def step(
        self, *, evicts: bool = False, may_go: frozenset[BaseId] = frozenset()
    ) -> Iterator[None]:
        """Check all that has to hold after a step.

        Only a step that ``evicts`` may make bases go, by the rules; ``may_go`` by request.
        """
        before = self.seen
        held = self.model.holds(before)
        self._log.clear()
        yield
        self.model.expire(self.agent.now)
        self.seen = self.look()
        self._happened["bases that came"] += len(self.seen.ready - before.ready)
        self._happened["bases that went"] += len(before.ready - self.seen.ready)
        self._happened["bases held"] += len({hold[2] for hold in held})
        self.checks.all(self.seen)
        self.checks.kept(held, before, self.seen)
        gone = self.checks.gone(before, self.seen, may_go=may_go)
        assert evicts or not gone
        assert not [line for line in self._log if line["event"] == "background work broke"]

    def in_doubt(self, base_id: BaseId) -> bool:
        """Tell whether the agent may take a base for used that nobody uses."""
        return self.model.in_doubt() or base_id in self.model.doubted(self.seen)

    def must_fit(self, size: int, *, cached: int) -> bool:
        """Tell whether so many bytes fit beyond doubt, ``cached`` of them as part of the cache.

        In doubt they need not: other files may take the room, a chain may hide users.
        """
        if self.system.filled or self.model.in_doubt():
            return False
        policy = self.checks.policy
        evictable = sum(base.allocated for base in self.checks.evictable(self.seen))
        rest = self.seen.cache_bytes - evictable
        if policy.max_size is not None and rest + cached + MARGIN > policy.max_size:
            return False
        if policy.min_keep:
            evictable = 0
        return self.system.free + evictable - size - MARGIN >= policy.min_free

    # --- others on the host --------------------------------------------------------------------

    def base_path(self, base_id: BaseId) -> Path:
        """Give the path of a base that is there."""
        return self.rig.layout.base(base_id, self.seen.bases[base_id].format)

    def unmount(self) -> None:
        """Let the folder of guests look as it does without its file system."""
        self.scan_dir.rename(self._aside)
        self.scan_dir.mkdir()
        self.model.unmounted = True

    def mount(self) -> None:
        """Let it have its files again."""
        self.scan_dir.rmdir()
        self._aside.rename(self.scan_dir)
        self.model.unmounted = False

    def number(self) -> int:
        """Give a number that nobody has had yet."""
        self._made += 1
        return self._made

    def name_for(self, folder: Path) -> Path:
        """Give a name that nobody has used yet."""
        return folder / f"by.hand.{self.number()}.qcow2"

    def overlay_by_hand(self, base_id: BaseId, path: Path, naming: str) -> None:
        """Make an overlay as somebody would who knows nothing of the agent."""
        base = self.base_path(base_id)
        names = {
            "absolute": str(base),
            "relative": os.path.relpath(base, path.parent),
            "json": f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}',
        }
        words = ("create", "-q", "-f", "qcow2", "-F", "raw", "-b", names[naming], path)
        self._by_hand(words, path, base_id)

    def chain_by_hand(self, base_id: BaseId, middle: Path) -> None:
        """Make an overlay of an overlay."""
        path = self.name_for(self.scan_dir)
        name = os.path.relpath(middle, path.parent)
        words = ("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, path)
        self._by_hand(words, path, base_id, middle)

    def copy_by_hand(self, base_id: BaseId, source: Path) -> None:
        """Copy an overlay as it is."""
        path = self.name_for(self.scan_dir)
        with self._in_place(path):
            shutil.copyfile(source, path)
            self._note(path, base_id, None)

    def _by_hand(
        self, words: tuple[object, ...], path: Path, base_id: BaseId, over: Path | None = None
    ) -> None:
        path.parent.mkdir(exist_ok=True)
        with self._in_place(path):
            qemu_img(*words)
            self._note(path, base_id, over)

    @contextlib.contextmanager
    def _in_place(self, path: Path) -> Iterator[None]:
        """Leave nothing where there is no room for a file."""
        try:
            yield
        except (OSError, subprocess.CalledProcessError):
            assert self.system.filled
            path.unlink(missing_ok=True)

    def _note(self, path: Path, base_id: BaseId, over: Path | None) -> None:
        self.model.by_hand[path] = ByHand(
            base_id=base_id,
            inode=path.stat().st_ino,
            over=None if over is None else (over, over.stat().st_ino),
        )
