"""What the API asks of the services below it.

The classes of ``service`` satisfy these protocols by their shape, and so do the fakes of the
tests. Every method raises a ``ProblemError`` for what the caller must know; the ones named here
are those that belong to the method alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cacheagent.model import (
        CacheResult,
        Caller,
        DiskKey,
        DiskSpec,
        DiskView,
        ImageId,
        ImageView,
        InstanceId,
        StatusView,
        Verification,
    )
    from cacheagent.policy.verdict import Why
    from cacheagent.service.events import Event
    from cacheagent.service.operator import Pruned


class DiskService(Protocol):
    """Disks and the instances that own them."""

    async def create(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Create the disk and wait for its base; the flag tells whether it was made now.

        Raises: ``DiskConflictError`` where the name is taken by another specification.
        """
        ...

    async def begin(self, key: DiskKey, spec: DiskSpec, caller: Caller) -> tuple[DiskView, bool]:
        """Start to create the disk; it is ``pending`` in the answer unless it is there already.

        Raises: ``DiskConflictError`` where the name is taken by another specification.
        """
        ...

    async def show(self, key: DiskKey, caller: Caller) -> DiskView:
        """Give the disk. Raises: ``DiskNotFoundError``, also where the caller may not see it."""
        ...

    async def delete(self, key: DiskKey, caller: Caller) -> None:
        """Remove the disk; one that is not there is a success too.

        Raises: ``OperatorOnlyError`` where the caller may not see it.
        """
        ...

    def instances(
        self, caller: Caller
    ) -> AsyncGenerator[tuple[InstanceId, Sequence[DiskView]], None]:
        """Give every instance that the caller may see, with its disks."""
        ...

    async def instance(self, instance_id: InstanceId, caller: Caller) -> Sequence[DiskView]:
        """Give the disks of the instance. Raises: ``InstanceNotFoundError``, as ``show``."""
        ...

    async def delete_instance(self, instance_id: InstanceId, caller: Caller) -> None:
        """Remove the instance with all its disks; one that is not there is a success too.

        Raises: ``OperatorOnlyError`` where the caller may not see it.
        """
        ...


class AccessService(Protocol):
    """Whose the tokens are."""

    async def prove(self, caller: Caller) -> None:
        """Return if the caller's token is one, or it has none.

        Raises: ``UnauthenticatedError``; ``GlanceUnavailableError`` where nobody can tell.
        """
        ...


class ImageService(Protocol):
    """Images that are cached or coming."""

    def list_images(self, caller: Caller) -> AsyncGenerator[ImageView, None]:
        """Give every image that is cached or coming, and that the caller may see."""
        ...

    async def show(self, image_id: ImageId, caller: Caller) -> ImageView:
        """Give the image. Raises: ``ImageNotFoundError`` when neither cached nor coming."""
        ...

    async def prefetch(
        self, image_id: ImageId, caller: Caller, *, pin: bool, wait: bool
    ) -> tuple[ImageView, CacheResult]:
        """Bring the image in, and tell what was found; with ``wait`` it is ready in the answer."""
        ...

    async def evict(self, image_id: ImageId, caller: Caller) -> None:
        """Evict the base now. Raises: ``BaseInUseError``, ``ImageNotFoundError``."""
        ...

    async def pin(self, image_id: ImageId, caller: Caller) -> None:
        """Pin the image. Raises: ``ImageNotFoundError``."""
        ...

    async def unpin(self, image_id: ImageId, caller: Caller) -> None:
        """Take the pin away. Raises: ``ImageNotFoundError``."""
        ...


class OperatorService(Protocol):
    """The bounds of the cache, and what keeps them."""

    async def why(self, image_id: ImageId, caller: Caller) -> Why:
        """Say why the image stays, or when it goes. Raises: ``ImageNotFoundError``."""
        ...

    async def prune(self, caller: Caller, *, dry_run: bool, free_bytes: int | None) -> Pruned:
        """Make one pass, or only its plan: for so many bytes, or for what the bounds ask for."""
        ...


class VerifyService(Protocol):
    """Bases that are read again."""

    async def verify(self, image_id: ImageId, caller: Caller) -> Verification:
        """Read the base of the image again and compare its digest; a damaged one goes.

        Raises: ``ImageNotFoundError`` where it has no base here.
        """
        ...


class EventService(Protocol):
    """What happens in the agent."""

    def follow(self, after: str | None, caller: Caller) -> AsyncGenerator[Event, None]:
        """Give what happens from now on, or behind the event ``after``, until the daemon stops."""
        ...


class StatusService(Protocol):
    """The agent itself."""

    @property
    def ready(self) -> bool:
        """Whether the start is done: files and catalog agree, requests can be served."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the daemon is on its way out and takes no new work."""
        ...

    async def status(self, caller: Caller) -> StatusView:
        """Give the agent at a glance; of refused images those that the caller may see."""
        ...

    async def refresh_metrics(self) -> None:
        """Bring the gauges up to date before they are read."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the handlers may call."""

    access: AccessService
    disks: DiskService
    images: ImageService
    operator: OperatorService
    verify: VerifyService
    events: EventService
    status: StatusService
