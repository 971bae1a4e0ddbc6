"""Which failures of a download are worth remembering, and for how long.

A crowd that comes just after a failure would find the same one, and would ask a server that is in
trouble as often as the crowd is large. Nova makes as many downloads as requests wait.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Final

from cacheagent.errors import (
    DigestMismatchError,
    GlanceRefusedError,
    GlanceUnavailableError,
    ImageNotActiveError,
    ImageUnacceptableError,
)

if TYPE_CHECKING:
    from cacheagent.errors import ProblemError

_LASTING: Final = (
    GlanceUnavailableError,
    GlanceRefusedError,
    ImageNotActiveError,
    ImageUnacceptableError,
    DigestMismatchError,
)
"""Of Glance, the network and the image. What is about a caller's token holds for nobody else, and
what is about this host (no room, a stop) may be over at once."""


def lasts(error: ProblemError) -> bool:
    """Tell whether whoever asks a moment later would find the same."""
    return isinstance(error, _LASTING)


def again(error: ProblemError, left: float) -> ProblemError:
    """Give what to raise for a remembered failure that is believed for ``left`` more seconds.

    One that passes says when to ask again: not before it is forgotten, nor before Glance said.
    """
    if isinstance(error, GlanceUnavailableError):
        retry_after = max(error.retry_after, math.ceil(left))
        return GlanceUnavailableError(str(error), retry_after=retry_after)
    return copy.copy(error)
