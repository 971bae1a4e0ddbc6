"""Room first: bytes are set aside before anything is downloaded or copied."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from cacheagent.errors import DiskFullError, InsufficientSpaceError, MkfsError, QemuImgError
from cacheagent.policy.eviction import Demand, DemandKind, Snapshot, shortages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cacheagent.model import SpaceUsage
    from cacheagent.policy.eviction import EvictionPolicy, Shortage

T = TypeVar("T")

ATTEMPTS = 3
"""How often room is made for one reservation: what went may be taken by others at once."""


LEAST = 1 << 20
"""What is said to be needed where a program found no room that nobody could foresee."""


class Reservation:
    """Bytes set aside for one piece of work; what it has written is no longer set aside."""

    def __init__(self, size: int, *, cached: bool) -> None:
        self.left = size
        self.cached = cached

    def claim(self, size: int) -> None:
        """Set more aside: what was written has gone, and is to be written again."""
        self.left += size

    def spent(self, size: int) -> None:
        """Say that ``size`` bytes have been written, and so count as used from now on."""
        self.left = max(self.left - size, 0)

    def still(self, size: int) -> int:
        """Say that at most ``size`` bytes are yet to be written; give those not set aside here."""
        self.left = min(self.left, size)
        return size - self.left


class Room:
    """The ledger of reserved bytes over everything that runs on one file system.

    ``cache_bytes`` measures what the cache takes there; ``policy`` gives the bounds as they are
    now. What does not fit is asked of ``evict_with``, where that was called.
    """

    def __init__(
        self,
        usage: Callable[[], Awaitable[SpaceUsage]],
        *,
        cache_bytes: Callable[[], Awaitable[int]],
        policy: Callable[[], EvictionPolicy],
    ) -> None:
        self._usage = usage
        self._cache_bytes = cache_bytes
        self._policy = policy
        self._reservations: set[Reservation] = set()
        self._evict: Callable[[Demand], Awaitable[None]] | None = None

    def evict_with(self, evict: Callable[[Demand], Awaitable[None]]) -> None:
        """Let ``evict`` be asked for what is missing.

        It frees what the demand asks for or raises ``InsufficientSpaceError``. The ledger comes
        first and what evicts looks into it, hence this late tie.
        """
        self._evict = evict

    @property
    def reserved(self) -> int:
        """How many bytes are set aside now."""
        return sum(reservation.left for reservation in self._reservations)

    async def snapshot(self) -> Snapshot:
        """Measure what is taken and what is set aside; the bases are left out."""
        before = {each: each.left for each in self._reservations}
        usage, cache_bytes = await self._usage(), await self._cache_bytes()
        # What was written since the measuring is not in its figures, and counts as set aside.
        left = {each: max(each.left, before.get(each, 0)) for each in self._reservations}
        return Snapshot(
            bases=(),
            space=usage,
            cache_bytes=cache_bytes,
            reserved=sum(left.values()),
            cache_reserved=sum(size for each, size in left.items() if each.cached),
        )

    @contextlib.asynccontextmanager
    async def reserve(self, size: int, *, cached: bool = True) -> AsyncIterator[Reservation]:
        """Set ``size`` bytes aside for as long as the context lasts, however it ends.

        ``cached`` tells whether they become part of the cache.

        Raises:
            InsufficientSpaceError: they are not there beside what others set aside and the
                bounds of the operator, and no eviction can free them.

        """
        reservation = await self._set_aside(Demand(DemandKind.ROOM, max(size, 0), cached))
        try:
            yield reservation
        finally:
            self._reservations.remove(reservation)

    async def _set_aside(self, demand: Demand) -> Reservation:
        for attempt in range(ATTEMPTS + 1) if demand.size else ():
            short = list(shortages(await self.snapshot(), self._policy(), demand))
            missing = max((each.size for each in short if each.hard), default=0)
            # A bound that is only to be tried for is tried for once.
            if not missing and (attempt or not short or self._evict is None):
                break
            if self._evict is None or attempt == ATTEMPTS:
                raise self._refusal(demand, missing)
            await self._try_to_evict(demand, short)
        # Nothing was waited for since the measuring: nobody else has taken these bytes.
        reservation = Reservation(demand.size, cached=demand.cached)
        self._reservations.add(reservation)
        return reservation

    async def _try_to_evict(self, demand: Demand, short: list[Shortage]) -> None:
        assert self._evict is not None  # noqa: S101 -- the caller has looked
        try:
            await self._evict(demand)
        except InsufficientSpaceError:
            if any(each.hard for each in short):
                raise

    def _refusal(self, demand: Demand, missing: int) -> InsufficientSpaceError:
        return InsufficientSpaceError(
            required_bytes=demand.size,
            available_bytes=max(demand.size - missing, 0),
        )

    @contextlib.asynccontextmanager
    async def conversion(self, size: int, *, cached: bool = True) -> AsyncIterator[Reservation]:
        """Set ``size`` bytes aside for what a program is about to write.

        Raises:
            InsufficientSpaceError: as ``reserve``.
            DiskFullError: the program found the disk full.

        """
        async with self.reserve(size, cached=cached) as reservation:
            try:
                yield reservation
            except (QemuImgError, MkfsError) as error:
                if not error.no_space:
                    raise
                free = (await self._usage()).available
                raise DiskFullError(required_bytes=size or LEAST, available_bytes=free) from error

    async def retrying(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``; where it finds the file system full, evict once and do it once more.

        Raises:
            InsufficientSpaceError: it is full still, or nothing could be evicted.

        """
        try:
            return await work()
        except DiskFullError as error:
            if self._evict is None:
                raise
            await self._evict(Demand(DemandKind.FULL, error.required_bytes))
        return await work()
