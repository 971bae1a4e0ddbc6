"""The log: lines for people or JSON for programs, on stderr, with the id of the request.

``configure`` routes structlog and the standard library's ``logging`` through one handler, so
that aiohttp and asyncio read like the rest. Modules log by ``structlog.get_logger(__name__)``;
what is bound by ``structlog.contextvars`` (``request_id``) stands in every line of a request.

Tokens never reach the log: neither as values under a telling name, nor in a text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "***"

_TELLING = re.compile(r"token|password|secret|authorization|passwd", re.IGNORECASE)
_IN_TEXT = re.compile(
    # A header as it is sent or as a mapping prints it, and a Fernet token by its first byte, 0x80.
    r"""((?:X-(?:Auth|Service|Subject)-Token|Authorization)['"]?\s*[:=,]\s*['"]?(?:Bearer\s+|Basic\s+)?)"""
    r"""[^\s'",}]+"""
    r"""|gAAAA[\w-]{20,}=*""",
    re.IGNORECASE,
)


_INSPECTOR = "oslo_utils.imageutils.format_inspector"


class _Handler(logging.StreamHandler[TextIO]):
    """Ours among the handlers of the root logger."""


def configure(
    level: str,
    log_format: str,
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Set the log up, or anew: ``level`` and ``log_format`` as in the configuration.

    ``stream`` is stderr where it is None. Where the journal of systemd listens on it, lines of
    text bear no time of their own.
    """
    structlog.configure(
        processors=[*_common(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # A reload changes the level of loggers that modules hold already.
        cache_logger_on_first_use=False,
    )
    _take_over(_handler(sys.stderr if stream is None else stream, log_format, environ))
    logging.getLogger().setLevel(level.upper())
    # What is refused we log ourselves, with the image; this warns of images that are let in, too.
    logging.getLogger(_INSPECTOR).setLevel("DEBUG" if level == "debug" else "CRITICAL")
    logging.captureWarnings(capture=True)


def _take_over(handler: _Handler) -> None:
    """Let the handler have all lines, in the place of an earlier one of ours."""
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)


def _handler(out: TextIO, log_format: str, environ: Mapping[str, str]) -> _Handler:
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_common(),
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(log_format, out, environ),
            ],
        )
    )
    return handler


@contextlib.contextmanager
def under_request(request_id: str | None) -> Iterator[None]:
    """Let the lines of this context bear the id of a request, where there is one.

    Work that many requests share belongs to none of them; its lines name the one that began it.
    """
    bound = {} if request_id is None else {"request_id": request_id}
    with structlog.contextvars.bound_contextvars(**bound):
        yield


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace, as a processor of structlog, every token and password by ``***``."""
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: object, value: object) -> object:
    if isinstance(key, str) and _TELLING.search(key) and isinstance(value, str | bytes):
        return HIDDEN
    if isinstance(value, str):
        return _IN_TEXT.sub(lambda found: (found[1] or "") + HIDDEN, value)
    if isinstance(value, Mapping):
        return {name: _clean(name, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(key, part) for part in value]
    return value


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _rendering(log_format: str, out: TextIO, environ: Mapping[str, str]) -> list[Processor]:
    """End with text or JSON. An exception becomes text first, without the values of its frames."""
    last: list[Processor] = [structlog.processors.format_exc_info, redact]
    if log_format == "json":
        return [*last, structlog.processors.JSONRenderer(default=str)]
    if _is_journal(out, environ):
        last.append(_without_time)
    colors = out.isatty() and "NO_COLOR" not in environ
    return [*last, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)]


def _is_journal(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Compare as systemd.exec(5) says: JOURNAL_STREAM holds the device and inode of the stream."""
    try:
        stat = os.fstat(out.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _without_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("timestamp", None)
    return event
