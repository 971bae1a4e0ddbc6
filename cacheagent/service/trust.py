"""Whether a base that is here may be handed out, and which were found to break the rules of now."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from cacheagent.errors import ImageUnacceptableError
from cacheagent.policy.admission import ImageRules
from cacheagent.policy.trust import (
    NOT_ABOUT_CONTENT,
    Lack,
    TrustRules,
    is_outdated,
    lacks,
    sentence,
)
from cacheagent.service.events import EventKind
from cacheagent.service.signatures import Signatures

if TYPE_CHECKING:
    from collections.abc import Collection

    from cacheagent.model import Base, BaseId, GlanceImage
    from cacheagent.service.parts import Parts

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """A base that breaks a rule: under which rules, and which one."""

    fetched_at: datetime
    rules: tuple[ImageRules, int]
    reason: str
    why: str


class Trust:
    """Compares what was proved of bases with what has to be.

    Only what was proved is written down, with the base. A refusal is remembered while the daemon
    runs and the rules stay as they are, so that nobody makes it read the file again and again;
    after a restart the base is still one of older rules, and is looked at anew. ``found`` is set
    when a base is refused.
    """

    def __init__(self, parts: Parts) -> None:
        self._rules = parts.trust
        self._image_rules = parts.rules
        self._events = parts.events
        self._counted = parts.metrics.reinspections_total
        self._signatures = Signatures(parts)
        self._refusals: dict[BaseId, _Refusal] = {}
        self.found = asyncio.Event()

    def rules(self) -> TrustRules:
        """Give what has to be proved now."""
        return self._rules()

    async def lacks(self, base: Base, image: GlanceImage) -> frozenset[Lack]:
        """Tell what has to be proved of the base before a request for the image may have it."""
        rules, vouched_by = self._rules(), None
        if rules.verify_signatures and image.signature is not None:
            vouched_by = await self._signatures.vouched_by(image.signature)
        return lacks(base, image, rules, vouched_by)

    def is_proved(self, base: Base, image: GlanceImage) -> bool:
        """Tell at once whether nothing lacks; False where a certificate would have to be asked for.

        It may be called from any thread.
        """
        rules = self._rules()
        if rules.verify_signatures and image.signature is not None:
            return False
        return not lacks(base, image, rules, None)

    def check(self, base: Base) -> None:
        """Return unless the base was refused by the rules of now.

        Raises:
            ImageUnacceptableError: it was, for this rule.

        """
        if (found := self._refusal(base)) is not None:
            raise ImageUnacceptableError(found.reason, found.why)

    def why_refused(self, base: Base) -> str | None:
        """Say which rule of now the base breaks; None where none is known."""
        found = self._refusal(base)
        return None if found is None else found.why

    async def withheld(self, base: Base, image: GlanceImage) -> str | None:
        """Say why nobody gets the base for this image as it is; None where anybody may."""
        return self.why_refused(base) or sentence(await self.lacks(base, image)) or None

    def refuse(self, base: Base, error: ImageUnacceptableError) -> None:
        """Remember that the content of a base that is here breaks a rule, and tell.

        A refusal for a signature is about one image, and one for the limits about this host: they
        say nothing about the base.
        """
        if error.reason in NOT_ABOUT_CONTENT or not is_outdated(base, self._rules()):
            return
        self._refusals[base.base_id] = _Refusal(
            fetched_at=base.fetched_at,
            rules=self._now(),
            reason=error.reason,
            why=f"the base is refused by newer rules: {error}",
        )
        self._counted.labels(result="refused").inc()
        facts = {"base_id": base.base_id, "reason": error.reason, "detail": str(error)}
        _log.error("a cached base is refused by newer rules", **facts)
        self._events.emit(EventKind.BASE_REFUSED, **facts)
        self.found.set()

    def refused(self) -> Collection[BaseId]:
        """Give the bases that were refused."""
        return tuple(self._refusals)

    def forget(self, base_id: BaseId) -> None:
        """Forget a refusal: the base has gone, or was let in."""
        self._refusals.pop(base_id, None)

    def _refusal(self, base: Base) -> _Refusal | None:
        found = self._refusals.get(base.base_id)
        if found is None or (found.fetched_at, found.rules) != (base.fetched_at, self._now()):
            return None
        return found

    def _now(self) -> tuple[ImageRules, int]:
        return self._image_rules(), self._rules().inspection_version
