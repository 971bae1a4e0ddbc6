"""What all steps have in common, and what they are drawn from."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from cacheagent.errors import (
    ImageForbiddenError,
    ImageNotActiveError,
    ImageNotFoundError,
    InsufficientSpaceError,
)
from cacheagent.model import Caller, DiskFormat, DiskMode, DiskSpec, FileSystem
from cacheagent.policy.eviction import Demand, DemandKind
from tests.fakes.values import disk_key
from tests.stateful.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cacheagent.model import BaseId
    from tests.stateful.images import Image
    from tests.stateful.world import Host

T = TypeVar("T")

KIB, MIB = 1 << 10, 1 << 20
NOBODY = Caller()

EVICTION: tuple[dict[str, Any], ...] = (
    {"max_size": 1536 * KIB, "min_free": 0, "min_age": 0},
    {"max_size": 3 * MIB, "min_free": 0, "min_age": 60, "min_keep": 512 * KIB, "max_idle": 3600},
    {"min_free": 8 * MIB, "high_watermark": 50, "low_watermark": 30, "min_age": 0, "max_idle": 0},
    {"min_free": 4 * MIB, "min_keep": MIB, "min_age": 600},
    {"max_size": 2 * MIB, "min_free": 2 * MIB, "min_age": 0, "max_idle": 700},
)
"""Bounds of caches; each run of the model has one of them."""

ALL = Demand(DemandKind.OPERATOR, 1 << 60)
"""What an operator wants who wants to have all bytes back."""

NO_IMAGE = (ImageNotActiveError, ImageNotFoundError, ImageForbiddenError)
"""What Glance has to be asked for, and does not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A disk as somebody may ask for it: ``image`` is a number, None for a blank one."""

    image: int | None
    size: int | None
    format: DiskFormat
    mode: DiskMode
    swap: bool

    def spec(self, images: tuple[Image, ...]) -> DiskSpec:
        """Give what is sent."""
        if self.image is None:
            filesystem = FileSystem.SWAP if self.swap else None
            size = self.size or MIB
            return DiskSpec(image_id=None, size=size, format=self.format, filesystem=filesystem)
        overlay = self.mode is DiskMode.OVERLAY
        return DiskSpec(
            image_id=images[self.image % len(images)].image_id,
            size=self.size,
            format=DiskFormat.QCOW2 if overlay else self.format,
            mode=self.mode,
        )


numbers = st.integers(0, 63)
keys = st.builds(disk_key, st.integers(1, 5), st.sampled_from(["root", "data"]))
seconds = st.sampled_from([1, 60, 599, 700, 3600, 100_000])
wishes = st.builds(
    Wish,
    image=st.none() | numbers,
    size=st.sampled_from([None, 2 * MIB, 3 * MIB]),
    format=st.sampled_from(DiskFormat),
    mode=st.sampled_from([DiskMode.OVERLAY, DiskMode.OVERLAY, DiskMode.FULL]),
    swap=st.booleans(),
)


class Steps(RuleBasedStateMachine):
    """A run of the model; those below add the steps.

    No step has a precondition: how a race ends is not in Hypothesis' hands, and what is drawn may
    not hang on it. A step that has nothing to work on does nothing, and is not counted.
    """

    host: Host

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.failed = False

    @initialize(eviction=st.sampled_from(EVICTION), first=st.lists(numbers, max_size=4))
    def begin(self, eviction: dict[str, Any], first: list[int]) -> None:
        """Start an agent on nothing, and let it have some images."""
        self.world = World(self.host, eviction)
        for number in first:
            self.pull(number)

    def pull(self, number: int) -> None:
        """Bring an image in."""
        raise NotImplementedError

    @contextlib.contextmanager
    def step(
        self, name: str, *, evicts: bool = False, may_go: Iterable[BaseId] = ()
    ) -> Iterator[None]:
        """Take one step, and check everything after it; see ``World.step``."""
        self.host.steps[name] += 1
        try:
            with self.world.step(evicts=evicts, may_go=frozenset(may_go)):
                yield
        except BaseException:
            self.failed = True
            # Hypothesis may have seen the same beginning go well: then it tells of that alone.
            self.host.failures.append(f"{name}\n{traceback.format_exc()}")
            raise

    def image(self, number: int) -> Image:
        """Give an image by a number that was drawn."""
        return self.world.images[number % len(self.world.images)]

    def chosen(self, things: Iterable[T], number: int) -> T:
        """Give one of them by a number that was drawn; the same one in every run."""
        found = sorted(things, key=str)
        return found[number % len(found)]

    def not_to_be_had(self, image: Image, error: Exception) -> None:
        """Check that a request for an image was refused for good reasons."""
        if isinstance(error, InsufficientSpaceError):
            # A hit takes a lease, which the catalog needs some room for.
            size = 2 * (len(image.data) + len(image.content))
            assert not self.world.must_fit(size, cached=size)
        else:
            assert isinstance(error, NO_IMAGE)
            assert not self.world.seen.hits(image.image_id)
            assert not self.world.service.is_active(image)
