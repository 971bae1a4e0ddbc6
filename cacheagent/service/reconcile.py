"""Files and catalog are made to agree: read both, let the policy compare, carry its plan out.

At the start nothing else works on either, and all is done at once. Later requests are served
meanwhile: what was read is a suspicion only, and each difference is looked at again under its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import CacheAgentError, DiskFullError
from cacheagent.model import Caller
from cacheagent.policy.drift import Running, diff
from cacheagent.service.adoption import Adoption
from cacheagent.service.despite import despite_full
from cacheagent.service.mending import Mending
from cacheagent.service.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cacheagent.model import BaseId
    from cacheagent.policy.drift import CatalogState, DriftPlan, FilesState
    from cacheagent.service.bases import Bases
    from cacheagent.service.creation import Creation
    from cacheagent.service.parts import Parts
    from cacheagent.service.repair import Repair
    from cacheagent.service.use import Use

_log = structlog.get_logger(__name__)


class Reconcile:
    """Compares what the catalog says with what lies on disk, and mends the difference."""

    def __init__(
        self, parts: Parts, *, bases: Bases, creation: Creation, use: Use, repair: Repair
    ) -> None:
        self._catalog = parts.catalog
        self._store = parts.store
        self._layout = parts.store.layout
        self._background = parts.background
        self._metrics = parts.metrics
        self._bases = bases
        self._creation = creation
        self._repair = repair
        self._survey = Survey(parts, use=use)
        self._mending = Mending(
            parts, bases=bases, creation=creation, repair=repair, survey=self._survey
        )
        self._adoption = Adoption(parts, bases=bases)
        # What was told and is so still; it is not told again.
        self._told: frozenset[object] = frozenset()

    async def run(self, now: datetime) -> DriftPlan:
        """Compare and mend; nothing else may use the catalog meanwhile. Give what was done.

        Whoever held a lease is dead. What has to be fetched is fetched in the background. Files
        that only their digest can prove wait for ``check``: to read them may take long.
        """
        # On a file system that is full to the last byte they end by themselves.
        with contextlib.suppress(DiskFullError):
            await despite_full(self._store, self._catalog.drop_leases)
        rows, files = await self._survey.rows(), await self._survey.files()
        plan = await asyncio.to_thread(diff, self._layout, rows, files, now)
        try:
            await self._mending.all_at_once(plan, files)
        except DiskFullError as error:
            # Whoever is served may be the one who makes room; the rounds go on with the rest.
            _log.error("rows and files differ, and there is no room to mend it", why=str(error))
        self._tell(plan)
        for image_id in plan.resume_ingests:
            work = self._bases.ensure(image_id, Caller())
            self._background.start(work, f"resumption of image {image_id}")
        for base in rows.bases:
            if base.base_id in plan.lost_bases:
                self._background.start(self._repair.lost(base), f"repair of base {base.base_id}")
        return plan

    async def check(self, now: datetime) -> DriftPlan:
        """Compare and mend while requests are served. Give what was done, and what is left alone.

        At the end the files are read that may be bases and have lost their manifest.
        """
        before = self._running(())
        rows = await self._survey.rows()
        files = await self._survey.files(known=rows.disks)
        running = _both(before, self._running(_base_ids(rows, files)))
        plan = await asyncio.to_thread(diff, self._layout, rows, files, now, running)
        mended = await self._mending.one_by_one(plan, files)
        # What is left alone, or looked at now, was not mended.
        mended = replace(
            mended,
            unproved_bases=plan.unproved_bases,
            strays=plan.strays,
            unknown=plan.unknown,
            doubtful_disks=plan.doubtful_disks,
        )
        self._tell(mended)
        for name in plan.unproved_bases:
            try:
                await self._adoption.prove(*name)
            except (CacheAgentError, OSError) as error:
                _log.warning("a file cannot be proved", base_id=name[0], why=str(error))
        return mended

    def _running(self, base_ids: Sequence[BaseId]) -> Running:
        return Running(
            images=self._bases.coming(),
            disks=frozenset(self._creation.wanted()),
            bases=frozenset(filter(self._bases.locks.held, base_ids)),
        )

    def _tell(self, plan: DriftPlan) -> None:
        """Count and log what is new; what lasts counted when it was found."""
        lasting = (*plan.strays, *plan.unknown, *plan.doubtful_disks)
        new = frozenset(lasting) - self._told
        self._told = frozenset(lasting)
        counts = {
            **plan.counts(),
            "unknown_file": len(new.intersection((*plan.strays, *plan.unknown))),
            "doubt": len(new.intersection(plan.doubtful_disks)),
        }
        for kind, count in counts.items():
            self._metrics.reconcile_drift_total.labels(kind=kind).inc(count)
        self._metrics.unknown_files.set(len(plan.strays) + len(plan.unknown))
        _log.info("reconciled", **counts)
        for path in (*plan.strays, *plan.unknown):
            if path in new:
                _log.warning("a file that is not ours is left alone", path=str(path))


def _base_ids(rows: CatalogState, files: FilesState) -> Sequence[BaseId]:
    """Give every base of which anything is there."""
    left = (each.base_id for each in files.inventory.leftovers if each.base_id is not None)
    found = (each.base_id for each in files.bases)
    return tuple({*(base.base_id for base in rows.bases), *found, *left})


def _both(one: Running, other: Running) -> Running:
    """Give what was worked on at either time."""
    return Running(
        images=one.images | other.images,
        disks=one.disks | other.disks,
        bases=one.bases | other.bases,
    )
