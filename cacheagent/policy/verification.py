"""What a base must be if nobody touched it: its length, its digest; and which one to look at next.

An image that was not converted is its base, byte for byte, so the digest that names the base is
that of the file. A conversion makes another file: its digest is taken once it is there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cacheagent.model import BaseState, Digest, parse_base_id
from cacheagent.policy.sizing import whole_sectors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cacheagent.model import Base

FILE_ALGORITHM = "sha256"
"""That of a converted base's file: whoever looks can do it again with sha256sum."""


def is_as_it_came(base: Base) -> bool:
    """Tell whether the file of the base is the image as it was downloaded.

    A raw image stays raw, and so do ``iso``, ``ami``, ``aki`` and ``ari``, which came as ``raw``;
    a qcow2 image stays what it is where ``images.base_format`` said so when it came.
    """
    return base.source_format == base.format.value


def has_right_length(base: Base, length: int) -> bool:
    """Tell whether a file of ``length`` bytes can be that of the base."""
    if is_as_it_came(base):
        return length == base.size
    return whole_sectors(length) == base.virtual_size


def expected_digest(base: Base) -> Digest | None:
    """Give the digest that the file has to have; None where it was not taken yet."""
    return parse_base_id(base.base_id) if is_as_it_came(base) else base.file_digest


def next_due(bases: Iterable[Base], interval: float, now: datetime) -> Base | None:
    """Give the base to read again now: of those that are due, the one read longest ago.

    A base is due ``interval`` seconds after it was read last, or came; 0 is never. One that no
    digest is known of is due at once: it has to be taken while the file is as it came.
    """
    ready = [base for base in bases if base.state is BaseState.READY]
    if unknown := [base for base in ready if expected_digest(base) is None]:
        return min(unknown, key=_last_read)
    due = [base for base in ready if interval and _is_due(base, interval, now)]
    return min(due, key=_last_read, default=None)


def _last_read(base: Base) -> datetime:
    return base.verified_at or base.fetched_at


def _is_due(base: Base, interval: float, now: datetime) -> bool:
    last = _last_read(base)
    # A time to come, after the clock was set back, tells nothing.
    return last > now or now - last >= timedelta(seconds=interval)
