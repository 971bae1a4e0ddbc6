"""What an answer of Glance, asked by the agent itself, says about an image that is cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.model import Standing

if TYPE_CHECKING:
    from cacheagent.model import GlanceImage

SEEN_BY_ALL = frozenset({"public", "community"})
"""Visibilities of images that every project can see."""


def is_seen_by_all(image: GlanceImage) -> bool:
    """Tell whether the right to the image says nothing of whose a disk made of it is."""
    return image.visibility in SEEN_BY_ALL


def judge(known: GlanceImage, said: GlanceImage) -> Standing:
    """Judge the image by what Glance says of it now; ``known`` is what it said when it came.

    Whatever is not ``active`` (``deactivated``, ``killed``, ``pending_delete`` …) is handed to
    nobody until it is again.
    """
    if said.status != "active":
        return Standing.DEACTIVATED
    return Standing.ACTIVE if _same_content(known, said) else Standing.CHANGED


def judge_absent(known: GlanceImage, *, was_seen: bool) -> Standing | None:
    """Judge an image that Glance does not know, or does not show to the agent.

    To the agent's own user a tenant's private image is as good as gone all the time. So that it
    has gone is known only of one that everybody could see, or that the agent itself has seen
    (``was_seen``); of any other nothing is known, which is None.
    """
    return Standing.GONE if was_seen or is_seen_by_all(known) else None


def _same_content(known: GlanceImage, said: GlanceImage) -> bool:
    """Compare what both descriptions have; an image without a digest may get one later."""
    facts = [
        (known.size, said.size),
        (known.checksum, said.checksum),
        (known.digest, said.digest),
    ]
    return all(old == new for old, new in facts if old is not None and new is not None)
