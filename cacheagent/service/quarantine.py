"""Images that were refused after they had come: kept within bounds, for an operator to look at.

What lies there stands for nothing: no row tells of it, no request finds it, no program is run on
it. So it is the first to go when room is wanted, and never worth an error of its own.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog

from cacheagent.backends.store import quarantine
from cacheagent.backends.store.quarantine import RefusalRecord
from cacheagent.errors import (
    DigestMismatchError,
    DiskFullError,
    ImageUnacceptableError,
    ProblemError,
)
from cacheagent.model import Digest, QuarantinedFile, QuarantineView
from cacheagent.policy.layout import RefusedName, refused_name
from cacheagent.policy.quarantine import oldest_first, overdue
from cacheagent.service.events import EventKind
from cacheagent.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.model import Caller, GlanceImage
    from cacheagent.policy.quarantine import Contents, Refused
    from cacheagent.service.access import Access
    from cacheagent.service.parts import Parts

Refusal = ImageUnacceptableError | DigestMismatchError
"""What is told of an image whose bytes have come, and that can never be a base."""

SHOWN = 50
"""Files that a status lists at most, the newest ones."""

LONGEST_DETAIL = 1000
"""Letters of a refusal that are written down: an image may have chosen some of them."""

_log = structlog.get_logger(__name__)


class Quarantine:
    """Takes refused images in, shows them, and lets them go."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._layout = parts.store.layout
        self._events = parts.events
        self._bounds = parts.quarantine_bounds
        self._now = parts.now

    async def contents(self) -> Contents:
        """Measure what lies there."""
        return await self._store.run(quarantine.contents, self._layout)

    async def take(self, image: GlanceImage, refusal: Refusal, digest: Digest | None) -> None:
        """Move the part of a refused image here, and drop what there is too much of then.

        ``digest`` is that of the bytes that came. Where the part cannot be kept, ``refusal`` says
        so, and the part stays for the caller to discard.
        """
        name = refused_name(image.image_id, self._now(), _reason(refusal))
        record = _record(name, image, refusal, digest)
        why_not = await self._keep(name, record)
        if why_not is not None:
            refusal.add(f"the file was not kept: {why_not}")
        facts = {
            "image_id": image.image_id,
            "reason": name.reason,
            "detail": record.detail,
            "file": None if why_not else str(name),
        }
        _log.warning("refused", **facts)
        self._events.emit(EventKind.IMAGE_REFUSED, **facts)

    async def _keep(self, name: RefusedName, record: RefusalRecord) -> str | None:
        """Move the part here; give why it does not lie here then, None where it does."""
        part = self._layout.part(name.image_id)
        most = self._bounds().max_size
        try:
            gone: tuple[Refused, ...] = ()
            fits = await self._store.allocated(part) <= most
            if fits:
                await self._store.run(quarantine.keep, self._layout, part, name, record)
                gone = await self.trim()
        except (OSError, DiskFullError) as error:
            _log.warning("a refused image could not be kept", name=str(name), why=str(error))
            with contextlib.suppress(OSError, DiskFullError):
                await self._store.run(quarantine.drop, self._layout, [name])
            return "it could not be moved to quarantine"
        if not fits or any(each.name == name for each in gone):
            return f"quarantine.max_size is {format_size(most)}"
        return None

    async def trim(self) -> tuple[Refused, ...]:
        """Drop what the operator's bounds leave no place for; give it."""
        gone = await self.overdue()
        await self.drop(gone)
        return gone

    async def overdue(self) -> tuple[Refused, ...]:
        """Give what the operator's bounds leave no place for."""
        return overdue(await self.contents(), self._bounds(), self._now())

    async def drop(self, refused: Iterable[Refused]) -> None:
        """Remove these, and say so."""
        going = tuple(refused)
        if going:
            names = [each.name for each in going]
            await self._store.run(quarantine.drop, self._layout, names)
            _log.info("dropped from quarantine", names=[str(name) for name in names])

    async def view(self, caller: Caller, access: Access) -> QuarantineView:
        """Show it: all of it to the operator, else the images that the caller surely may have."""
        found = await self.contents()
        newest = list(reversed(oldest_first(found.refused)))[:SHOWN]
        try:
            allowed = await access.allowed({each.name.image_id for each in newest}, caller)
        except ProblemError:
            # Nobody can tell; what else a status says is worth having.
            allowed = frozenset()
        mine = [each for each in newest if each.name.image_id in allowed]
        names = [each.name for each in mine]
        records = await self._store.run(quarantine.read_records, self._layout, names)
        return QuarantineView(
            allocated=found.allocated,
            max_size=self._bounds().max_size,
            count=len(found.refused),
            files=tuple(_shown(each, records[each.name]) for each in mine),
        )


def _record(
    name: RefusedName, image: GlanceImage, refusal: Refusal, digest: Digest | None
) -> RefusalRecord:
    found = digest
    if isinstance(refusal, DigestMismatchError):
        found = Digest(refusal.algorithm, refusal.actual)
    return RefusalRecord(
        image_id=image.image_id,
        reason=name.reason,
        detail=_plain(str(refusal)),
        disk_format=image.disk_format and _plain(image.disk_format),
        container_format=image.container_format and _plain(image.container_format),
        size=image.size,
        algorithm=found.algorithm if found else None,
        digest=found.hex if found else None,
        at=name.at,
    )


def _reason(refusal: Refusal) -> str:
    return refusal.reason if isinstance(refusal, ImageUnacceptableError) else refusal.word


def _plain(text: str) -> str:
    """Cut what is too long, and replace what UTF-8 cannot carry: it may come from the image."""
    return text[:LONGEST_DETAIL].encode("utf-8", "replace").decode("utf-8")


def _shown(each: Refused, record: RefusalRecord | None) -> QuarantinedFile:
    return QuarantinedFile(
        name=str(each.name),
        image_id=each.name.image_id,
        reason=each.name.reason,
        detail=record.detail if record else "",
        allocated=each.allocated,
        at=each.name.at,
    )
