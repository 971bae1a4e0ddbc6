"""Which disks are being created, and as what: one specification for each name."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from cacheagent.service.intent import conflict, pending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from cacheagent.model import DiskKey, DiskSpec


class Wanted:
    """Knows as what a disk is wanted, while anybody asks for it or was told that it comes.

    ``specs`` are those disks, as they change. ``now`` gives the time. All methods belong to one
    event loop, and none waits.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._specs: dict[DiskKey, DiskSpec] = {}
        self.specs: Mapping[DiskKey, DiskSpec] = MappingProxyType(self._specs)
        self._promised: set[DiskKey] = set()
        # Callers and their runs. One may end before the other, and the next run begin before the
        # callers of the last one have learned of its end.
        self._asking: Counter[DiskKey] = Counter()

    def refuse_another(self, key: DiskKey, spec: DiskSpec) -> None:
        """Refuse a disk that is wanted as something else.

        Raises:
            DiskConflictError: it is.

        """
        other = self._specs.get(key, spec)
        if other != spec:
            raise conflict(pending(key, other, self._now()))

    @contextmanager
    def asked(self, key: DiskKey, spec: DiskSpec) -> Iterator[bool]:
        """Ask for the disk for the body of a ``with``; gives whether nobody wanted it before.

        Raises:
            DiskConflictError: it is wanted as something else.

        """
        self.refuse_another(key, spec)
        first = key not in self._specs
        self._specs[key] = spec
        self._asking[key] += 1
        try:
            yield first
        finally:
            self._asking[key] -= 1
            self._settle(key)

    def promise(self, key: DiskKey, spec: DiskSpec) -> bool:
        """Note that somebody is told that the disk is on its way; False where one was before.

        Raises:
            DiskConflictError: it is wanted as something else.

        """
        self.refuse_another(key, spec)
        if key in self._promised:
            return False
        self._specs[key] = spec
        self._promised.add(key)
        return True

    def is_promised(self, key: DiskKey) -> bool:
        """Tell whether somebody was told that the disk is on its way, and it still is."""
        return key in self._promised

    def end_promise(self, key: DiskKey) -> None:
        """Note that nobody waits for a promise any more: it was kept, broken, or taken back."""
        self._promised.discard(key)
        self._settle(key)

    def _settle(self, key: DiskKey) -> None:
        """Forget as what the disk was wanted, if nobody creates it any more."""
        if key not in self._promised and not self._asking[key]:
            self._specs.pop(key, None)
            del self._asking[key]
