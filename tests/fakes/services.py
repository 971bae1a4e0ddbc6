"""Services without anything behind them: they answer with what a test puts in.

Every call is recorded with its arguments. A ``problem`` is raised by whatever is called next.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cacheagent.api.services import Services
from cacheagent.model import (
    Base,
    BaseId,
    BaseState,
    CacheResult,
    Disk,
    DiskFormat,
    DiskKey,
    DiskMode,
    DiskName,
    DiskSpec,
    DiskState,
    DiskView,
    GlanceImage,
    ImageId,
    ImageState,
    ImageView,
    InstanceId,
    QuarantinedFile,
    QuarantineView,
    SandboxKind,
    SpaceUsage,
    StatusView,
    User,
    UserKind,
    Verification,
    VerificationOutcome,
)
from cacheagent.policy.eviction import Eviction, EvictionPolicy, Reason, Rule, Snapshot, Stay
from cacheagent.policy.layout import RefusedName
from cacheagent.policy.quarantine import Refused
from cacheagent.policy.verdict import Verdict, Why
from cacheagent.service.events import Events
from cacheagent.service.operator import Pruned
from cacheagent.service.removal import Skipped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cacheagent.model import Caller
    from cacheagent.service.events import Event

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
IMAGE = ImageId("0b0ba5e5-0000-4000-8000-000000000001")
INSTANCE = InstanceId("1457a9ce-0000-4000-8000-000000000001")
ROOT = DiskKey(instance_id=INSTANCE, name=DiskName("root"))

BASE = Base(
    base_id=BaseId("sha512-" + "ab" * 64),
    state=BaseState.READY,
    format=DiskFormat.RAW,
    source_format="qcow2",
    size=1000,
    virtual_size=4096,
    allocated=2048,
    inspection_version=1,
    fetched_at=NOON,
    last_used_at=NOON,
)
BASE_PATH = Path("/bases") / f"{BASE.base_id}.raw"

DISK = DiskView(
    disk=Disk(
        key=ROOT,
        spec=DiskSpec(image_id=IMAGE, size=None),
        state=DiskState.READY,
        format=DiskFormat.QCOW2,
        mode=DiskMode.OVERLAY,
        virtual_size=4096,
        image_id=IMAGE,
        base_id=BASE.base_id,
        cache=CacheResult.MISS,
        created_at=NOON,
    ),
    path=Path("/instances") / INSTANCE / "root.qcow2",
    base=BASE,
    base_path=BASE_PATH,
)

CACHED = ImageView(
    image=GlanceImage(
        image_id=IMAGE,
        name="debian",
        status="active",
        disk_format="qcow2",
        container_format="bare",
        size=1000,
    ),
    state=ImageState.READY,
    base=BASE,
    base_path=BASE_PATH,
    progress=None,
    pinned=False,
    users=(User(kind=UserKind.DISK, key=ROOT),),
    error=None,
)

WHY = Why(
    view=CACHED,
    verdict=Verdict(
        goes=False,
        reason=Reason.HIGH_WATERMARK,
        users=CACHED.users,
        rules=(Rule.MIN_AGE,),
        unused=3,
        free_at=NOON,
    ),
    snapshot=Snapshot(
        bases=(), space=SpaceUsage(total=1000, available=400), cache_bytes=300, reserved=20
    ),
    policy=EvictionPolicy(
        max_size=None,
        high_watermark=55,
        low_watermark=50,
        min_free=50,
        min_keep=10,
        min_age=600,
        max_idle=0,
    ),
    needed_bytes=100,
    summary="It stays, because it is in use: 1 disk.",
)

GOES = Eviction(base=BASE, images=(IMAGE,), reason=Reason.MAX_SIZE, frees=2048)

REFUSED = RefusedName(image_id=IMAGE, at=NOON, reason="backing-file")

PRUNED = Pruned(
    dry_run=False,
    evicted=(GOES,),
    stay=(
        Stay(
            base=BASE,
            images=(IMAGE,),
            users=(),
            rules=(Rule.MIN_KEEP,),
            wanted=Reason.MIN_FREE,
            position=2,
            free_at=None,
            idle_at=NOON,
        ),
    ),
    skipped=(Skipped(eviction=GOES, users=CACHED.users),),
    needed_bytes=5000,
    freed_bytes=2000,
    unmet_bytes=3000,
    unmet_inodes=1,
    dropped=(Refused(name=REFUSED, allocated=4096),),
)

VERIFIED = Verification(
    base_id=BASE.base_id,
    algorithm="sha512",
    expected="ab" * 64,
    actual="cd" * 64,
    outcome=VerificationOutcome.DAMAGED,
    bytes_read=2048,
    seconds=1.5,
    error="its sha512 is another one",
)

STATUS = StatusView(
    version="1.2.3",
    started_at=NOON,
    uptime_seconds=12.5,
    ready=True,
    stopping=False,
    sandbox=SandboxKind.BUBBLEWRAP,
    space=SpaceUsage(total=1000, available=400),
    cache_bytes=300,
    reserved=20,
    high_watermark_bytes=850,
    low_watermark_bytes=750,
    min_free=50,
    max_size=500,
    doubts=(User(kind=UserKind.DOUBT, path=Path("/scanned"), detail="is empty"),),
    unmet_bytes=7,
    quarantine=QuarantineView(
        allocated=8192,
        max_size=1 << 20,
        count=3,
        files=(
            QuarantinedFile(
                name=str(REFUSED),
                image_id=IMAGE,
                reason="backing-file",
                detail="it names a backing file",
                allocated=4096,
                at=NOON,
            ),
        ),
    ),
    counts={"images": 1, "disks": 1},
    loops={"pruner": NOON, "scrubber": None},
    glance_reachable=True,
    glance_checked_at=NOON,
)


@dataclass
class Script:
    """What the fakes were asked, and what they shall do next."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    problem: Exception | None = None

    def note(self, *call: object) -> None:
        """Record a call, and raise the problem where there is one."""
        self.calls.append(call)
        if self.problem is not None:
            raise self.problem


class FakeDisks:
    """A ``DiskService``: ``view`` and ``made`` are its answer to whoever creates or shows."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.view = DISK
        self.made = True
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.hangs = False

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Answer with ``view``, or never where it ``hangs``."""
        self._script.note("create", key, spec, caller)
        self.entered.set()
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return self.view, self.made

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Answer with ``view``."""
        self._script.note("begin", key, spec, caller)
        return self.view, self.made

    async def show(self, key: DiskKey, caller: Caller) -> DiskView:
        """Answer with ``view``."""
        self._script.note("show", key, caller)
        return self.view

    async def delete(self, key: DiskKey, caller: Caller) -> None:
        """Do nothing."""
        self._script.note("delete", key, caller)

    async def instances(
        self, caller: Caller
    ) -> AsyncGenerator[tuple[InstanceId, Sequence[DiskView]], None]:
        """Answer with one instance that has ``view``."""
        self._script.note("instances", caller)
        yield INSTANCE, (self.view,)

    async def instance(self, instance_id: InstanceId, caller: Caller) -> Sequence[DiskView]:
        """Answer with ``view`` alone."""
        self._script.note("instance", instance_id, caller)
        return (self.view,)

    async def delete_instance(self, instance_id: InstanceId, caller: Caller) -> None:
        """Do nothing."""
        self._script.note("delete_instance", instance_id, caller)


class FakeAccess:
    """An ``AccessService``: every token is one, unless ``refusal`` says why not."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.proved: list[Caller] = []

    async def prove(self, caller: Caller) -> None:
        """Note the caller, and raise ``refusal`` where there is one and a token."""
        self.proved.append(caller)
        if self.refusal is not None and caller.token is not None:
            raise self.refusal


class FakeImages:
    """An ``ImageService``: ``view`` is its answer, ``found`` what a prefetch came upon."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.view = CACHED
        self.found = CacheResult.HIT

    async def list_images(self, caller: Caller) -> AsyncGenerator[ImageView, None]:
        """Answer with ``view`` alone."""
        self._script.note("list_images", caller)
        yield self.view

    async def show(self, image_id: ImageId, caller: Caller) -> ImageView:
        """Answer with ``view``."""
        self._script.note("show", image_id, caller)
        return self.view

    async def prefetch(
        self, image_id: ImageId, caller: Caller, *, pin: bool, wait: bool
    ) -> tuple[ImageView, CacheResult]:
        """Answer with ``view`` and ``found``."""
        self._script.note("prefetch", image_id, caller, pin, wait)
        return self.view, self.found

    async def evict(self, image_id: ImageId, caller: Caller) -> None:
        """Do nothing."""
        self._script.note("evict", image_id, caller)

    async def pin(self, image_id: ImageId, caller: Caller) -> None:
        """Do nothing."""
        self._script.note("pin", image_id, caller)

    async def unpin(self, image_id: ImageId, caller: Caller) -> None:
        """Do nothing."""
        self._script.note("unpin", image_id, caller)


class FakeOperator:
    """An ``OperatorService``: ``found`` and ``done`` are its answers."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.found = WHY
        self.done = PRUNED

    async def why(self, image_id: ImageId, caller: Caller) -> Why:
        """Answer with ``found``."""
        self._script.note("why", image_id, caller)
        return self.found

    async def prune(self, caller: Caller, *, dry_run: bool, free_bytes: int | None) -> Pruned:
        """Answer with ``done``."""
        self._script.note("prune", caller, dry_run, free_bytes)
        return self.done


class FakeVerify:
    """A ``VerifyService``: ``done`` is its answer."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.done = VERIFIED

    async def verify(self, image_id: ImageId, caller: Caller) -> Verification:
        """Answer with ``done``."""
        self._script.note("verify", image_id, caller)
        return self.done


class FakeFollowing:
    """An ``EventService``: it follows ``events``, which a test emits and closes."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.events = Events(lambda: NOON)
        self.left = asyncio.Event()

    async def follow(self, after: str | None, caller: Caller) -> AsyncGenerator[Event, None]:
        """Give the events; ``left`` is set when nobody follows any more."""
        self._script.note("follow", after, caller)
        try:
            async for event in self.events.follow(after):
                yield event
        finally:
            self.left.set()


class FakeStatus:
    """A ``StatusService`` that is ready."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.ready = True
        self.stopping = False

    async def status(self, caller: Caller) -> StatusView:
        """Answer with a status in which every figure is another."""
        self._script.note("status", caller)
        return STATUS

    async def refresh_metrics(self) -> None:
        """Do nothing."""
        self._script.note("refresh_metrics")


class FakeServices:
    """All fakes on one script; ``bundle`` is what an application takes."""

    def __init__(self) -> None:
        self.script = Script()
        self.access = FakeAccess()
        self.disks = FakeDisks(self.script)
        self.images = FakeImages(self.script)
        self.status = FakeStatus(self.script)
        self.operator = FakeOperator(self.script)
        self.verify = FakeVerify(self.script)
        self.following = FakeFollowing(self.script)
        self.bundle = Services(
            access=self.access,
            disks=self.disks,
            images=self.images,
            operator=self.operator,
            verify=self.verify,
            events=self.following,
            status=self.status,
        )
