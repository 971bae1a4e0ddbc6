"""Bases that only older rules have let in are inspected by those of now, before anybody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import DigestMismatchError, ImageUnacceptableError, ProblemError
from cacheagent.model import BaseState, Caller, Standing
from cacheagent.policy.trust import is_outdated, next_outdated
from cacheagent.policy.verification import is_as_it_came
from cacheagent.sync.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Collection

    from cacheagent.model import Base, BaseId
    from cacheagent.service.bases import Bases
    from cacheagent.service.parts import Parts
    from cacheagent.service.proof import Proven
    from cacheagent.service.repair import Repair
    from cacheagent.sync.throttle import Throttle

_log = structlog.get_logger(__name__)


class Reinspect:
    """Inspects one base after the other; what is refused is withdrawn as soon as nobody uses it."""

    def __init__(self, parts: Parts, bases: Bases, repair: Repair) -> None:
        self._catalog = parts.catalog
        self._counted = parts.metrics.reinspections_total
        self._outdated = parts.metrics.bases_of_older_rules
        self._bases = bases
        self._repair = repair
        self.found = bases.trust.found

    async def due(self, without: Collection[BaseId]) -> Base | None:
        """Give the base to inspect now, if any is; not one of ``without``, nor one refused."""
        trust = self._bases.trust
        bases = await self._catalog.bases()
        self._outdated.set(
            sum(
                base.state is BaseState.READY and is_outdated(base, trust.rules()) for base in bases
            )
        )
        left = [
            base
            for base in bases
            if base.base_id not in without and trust.why_refused(base) is None
        ]
        return next_outdated(left, trust.rules())

    async def reinspect(self, base: Base, throttle: Throttle) -> bool:
        """Inspect the base, and tell whether it can be told what it is.

        The file is read no faster than ``throttle`` lets it. That is not done under the lock of
        the base: a request for it does not wait for this, but reads the file itself.

        Raises:
            OSError: the file cannot be read.

        """
        told = await (self._reread(base, throttle) if is_as_it_came(base) else self._fetch(base))
        if not told:
            self._counted.labels(result="failed").inc()
        return told

    async def withdraw(self) -> None:
        """Take refused bases out of use for good that nobody uses any more."""
        trust = self._bases.trust
        for base_id in trust.refused():
            row = await self._catalog.base(base_id)
            if row is None:
                trust.forget(base_id)
            elif row.state is BaseState.READY and (why := trust.why_refused(row)) is not None:
                await self._repair.withdraw(row, why)

    async def _reread(self, base: Base, throttle: Throttle) -> bool:
        try:
            seen = await self._bases.renewal.read(base, throttle)
        except DigestMismatchError as error:
            await self._repair.damaged(base, str(error))
            return True
        async with self._bases.locks.hold(base.base_id):
            await uninterrupted(self._admit(base, seen))
        return True

    async def _admit(self, base: Base, seen: Proven) -> None:
        row = await self._catalog.base(base.base_id)
        # A request may have been faster, or another base has come under its name.
        if row is None or (row.state, row.fetched_at) != (BaseState.READY, base.fetched_at):
            return
        try:
            if is_outdated(row, self._bases.trust.rules()):
                await self._bases.renewal.admit(row, seen)
        except ImageUnacceptableError as error:
            _log.warning("it is handed to nobody any more", base_id=row.base_id, why=str(error))

    async def _fetch(self, base: Base) -> bool:
        """Ask for an image of a converted base, as a request would: its source is fetched anew."""
        for cached in await self._catalog.images_of(base.base_id):
            if cached.standing is not Standing.ACTIVE:
                continue
            try:
                await self._bases.ensure(cached.image.image_id, Caller())
            except ProblemError as error:
                told = {"image_id": cached.image.image_id, "base_id": base.base_id}
                _log.warning("a base could not be inspected again", **told, why=str(error))
            row = await self._catalog.base(base.base_id)
            trust = self._bases.trust
            if row is None or not is_outdated(row, trust.rules()) or trust.why_refused(row):
                return True
        return False
