"""What a base that is here lacks before a request may have it: what was proved of it is on record.

After each CVE of image formats operators were told to purge their caches by hand, since what was
let in by older rules stayed (CVE-2022-47951, CVE-2024-32498). And a cache that asks for signatures
only when it downloads serves what came without a check. So both are looked at on every request.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cacheagent.model import BaseState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheagent.model import Base, GlanceImage, ImageSignature

NOT_ABOUT_CONTENT: Final = frozenset(
    {"signature-missing", "signature-invalid", "signature-certificate", "limits"}
)
"""Refusals that are about one image, or this host, and not about the content that others share."""


class Lack(enum.StrEnum):
    """What is not proved of a base, and has to be."""

    INSPECTION = "inspection"
    SIGNATURE = "signature"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRules:
    """What has to be proved: by which version of the rules, and whether by a signature."""

    inspection_version: int
    verify_signatures: bool


def lacks(
    base: Base, image: GlanceImage, rules: TrustRules, vouched_by: str | None
) -> frozenset[Lack]:
    """Tell what has to be proved of the base before a request for the image may have it.

    ``vouched_by`` is the fingerprint of what the operator trusts now, None where that cannot be
    told: a signature that was checked by another one's word has to be checked again.
    """
    found = set()
    if is_outdated(base, rules):
        found.add(Lack.INSPECTION)
    if rules.verify_signatures and not _holds(base, image, vouched_by):
        found.add(Lack.SIGNATURE)
    return frozenset(found)


def _holds(base: Base, image: GlanceImage, vouched_by: str | None) -> bool:
    if image.signature is None or vouched_by is None:
        return False
    return replace(image.signature, vouched_by=vouched_by) in base.signatures


def with_signatures(
    known: Iterable[ImageSignature], checked: Iterable[ImageSignature]
) -> tuple[ImageSignature, ...]:
    """Add what was checked now to what is known; it takes the place of older checks of the same."""
    new = {replace(each, vouched_by=""): each for each in checked}
    kept = (each for each in known if replace(each, vouched_by="") not in new)
    return (*kept, *new.values())


def is_outdated(base: Base, rules: TrustRules) -> bool:
    """Tell whether only older rules have let the base in."""
    return base.inspection_version < rules.inspection_version


def next_outdated(bases: Iterable[Base], rules: TrustRules) -> Base | None:
    """Give the base to inspect again now: of those that have to be, the one used last."""
    outdated = (
        base for base in bases if base.state is BaseState.READY and is_outdated(base, rules)
    )
    return max(outdated, key=lambda base: base.last_used_at, default=None)


def sentence(lacking: frozenset[Lack]) -> str:
    """Say why nobody is handed the base before it was proved again; empty where nothing lacks."""
    parts = []
    if Lack.INSPECTION in lacking:
        parts.append("it was let in by older rules, and is inspected again before anybody gets it")
    if Lack.SIGNATURE in lacking:
        parts.append("the signature of the image is checked before anybody gets it")
    return "; ".join(parts)
