"""A request for a disk in one transaction: what its name stands for, its base, and the intent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.backends.catalog import queries
from cacheagent.model import Base, BaseState, CachedImage, Disk

if TYPE_CHECKING:
    import sqlite3

Fit = Callable[[CachedImage, Base], Disk | None]
"""Gives the disk as it will be, None where image and base will not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What was found: the row of the name; or else the intent, and what the disk is made of.

    Nothing at all where the image has no base that will do.
    """

    there: Disk | None = None
    intent: Disk | None = None
    found: tuple[CachedImage, Base] | None = None


def claim_disk(db: sqlite3.Connection, wanted: Disk, fit: Fit) -> Claim:
    """Record the intent to make a disk of a name that is free, from a base that is READY."""
    if (there := queries.disk(db, wanted.key)) is not None:
        return Claim(there=there)
    if wanted.image_id is None or (cached := queries.image(db, wanted.image_id)) is None:
        return Claim()
    base = None if cached.base_id is None else queries.base(db, cached.base_id)
    if base is None or base.state is not BaseState.READY:
        return Claim()
    intent = fit(cached, base)
    if intent is None:
        return Claim()
    queries.insert_intent(db, intent)
    return Claim(intent=intent, found=(cached, base))
