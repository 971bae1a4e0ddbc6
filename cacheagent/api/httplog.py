"""What the HTTP server itself has to say, as far as it is ours to be told."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp.http_exceptions import BadHttpMessage


class HttpLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger of aiohttp's server, for whom what a stranger sends is an error of ours.

    A request that is no HTTP becomes one line without a traceback, and without what was sent:
    that may be a token, and who floods the daemon must not flood the log.
    """

    def __init__(self) -> None:
        super().__init__(logging.getLogger("aiohttp.server"), {})

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401 -- as in LoggerAdapter
        """Log; ``debug`` and ``exception`` come by here as well."""
        error = kwargs.get("exc_info")
        if isinstance(error, BadHttpMessage):
            kind = type(error).__name__
            super().log(min(level, logging.INFO), f"{msg}: %s", *args, kind)
        else:
            super().log(level, msg, *args, **kwargs)
