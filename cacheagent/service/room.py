"""Room first: bytes are set aside before anything is downloaded or copied."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cacheagent.errors import InsufficientSpaceError, MkfsError, QemuImgError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cacheagent.model import SpaceUsage


class Reservation:
    """Bytes set aside for one piece of work; what it has written is no longer set aside."""

    def __init__(self, size: int) -> None:
        self.left = size

    def claim(self, size: int) -> None:
        """Set more aside: what was written has gone, and is to be written again."""
        self.left += size

    def spent(self, size: int) -> None:
        """Say that ``size`` bytes have been written, and so count as used from now on."""
        self.left = max(self.left - size, 0)


class Room:
    """The ledger of reserved bytes over everything that runs."""

    def __init__(
        self, usage: Callable[[], Awaitable[SpaceUsage]], *, min_free: Callable[[], int]
    ) -> None:
        self._usage = usage
        self._min_free = min_free
        self._reservations: set[Reservation] = set()

    @property
    def reserved(self) -> int:
        """How many bytes are set aside now."""
        return sum(reservation.left for reservation in self._reservations)

    @contextlib.asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[Reservation]:
        """Set ``size`` bytes aside for as long as the context lasts, however it ends.

        Raises:
            InsufficientSpaceError: they are not there, beside what others set aside and the
                bytes that the operator wants to stay free.

        """
        usage = await self._usage()
        available = max(usage.available - self.reserved - self._min_free(), 0)
        if size > available:
            raise InsufficientSpaceError(
                required_bytes=size, available_bytes=available, kept_free=self._min_free()
            )
        reservation = Reservation(size)
        self._reservations.add(reservation)
        try:
            yield reservation
        finally:
            self._reservations.remove(reservation)

    @contextlib.asynccontextmanager
    async def conversion(self, size: int) -> AsyncIterator[Reservation]:
        """Set ``size`` bytes aside for what a program is about to write.

        Raises:
            InsufficientSpaceError: as ``reserve``, or because the program found the disk full.

        """
        async with self.reserve(size) as reservation:
            try:
                yield reservation
            except (QemuImgError, MkfsError) as error:
                if not error.no_space:
                    raise
                available = (await self._usage()).available
                raise InsufficientSpaceError(
                    required_bytes=size, available_bytes=available
                ) from error
