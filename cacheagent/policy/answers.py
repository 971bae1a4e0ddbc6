"""What the headers of an HTTP answer claim, and whether that can be true.

A server may get Range wrong in more than one way, and some stores behind Glance do: 200 in place
of 206, 206 with the whole body, another range than the one asked for. Section numbers are those
of RFC 9110.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from cacheagent.errors import GlanceRefusedError, GlanceUnavailableError

_BRIEF = 300
"""Characters that are repeated of anything that a server said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Of an answer with data, what tells about its body; ``length`` is its Content-Length."""

    status: int
    length: int | None = None
    content_range: str | None = None
    content_encoding: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a body lies in the image.

    The first ``skip`` bytes are there already; the body ends where the image does, at ``total``.
    """

    skip: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRange:
    """A Content-Range (section 14.4): first and last byte, both inclusive; total if told."""

    first: int
    last: int
    total: int | None


def place_body(head: Head, *, position: int, size: int | None) -> Placement:
    """Say where the body lies that was asked for from byte ``position`` to the end.

    ``size`` is the size of the image as the metadata tell it, None where they do not.

    Raises: ``GlanceRefusedError`` where the answer contradicts the metadata;
    ``GlanceUnavailableError`` where another attempt may get a better one.
    """
    if head.status == HTTPStatus.NO_CONTENT:
        raise _refused(head, "active image without data: its file is gone from the store")
    if (head.content_encoding or "identity").lower() != "identity":
        raise _refused(
            head, f"the data come encoded as {brief(head.content_encoding or '')}, unasked"
        )
    start, total = _claim(head, position, size)
    total = size if total is None else total
    if total is None:
        raise _refused(head, "neither the metadata nor the data tell the size of the image")
    if size is not None and total != size:
        raise _refused(head, f"the image has {size} bytes by its metadata, {total} by its data")
    if start not in {0, position}:
        raise GlanceUnavailableError(f"asked for the data from {position}, got from {start}")
    return Placement(skip=position - start, total=total)


def _claim(head: Head, position: int, size: int | None) -> tuple[int, int | None]:
    """Read off where in the image the body begins, and how large the image is."""
    if head.status == HTTPStatus.OK:
        return 0, head.length
    if head.status != HTTPStatus.PARTIAL_CONTENT:
        raise _refused(head, f"an answer {head.status} is none to a request for data")
    said = parse_content_range(head.content_range)
    if said is not None:
        return _claim_of_range(head, said)
    # Section 15.3.7 demands a Content-Range; without one only the length can tell.
    if head.length is not None and size is not None and head.length in {size, size - position}:
        return size - head.length, size
    raise GlanceUnavailableError("an answer 206 does not say which part it is")


def _claim_of_range(head: Head, said: ContentRange) -> tuple[int, int]:
    total = said.last + 1 if said.total is None else said.total
    if said.last + 1 != total:
        raise GlanceUnavailableError(f"asked for the data to the end, got to {said.last}")
    if head.length in {None, total - said.first}:
        return said.first, total
    if head.length == total:
        return 0, total  # the head of a part before the whole body
    raise GlanceUnavailableError(
        f"the answer claims bytes {said.first} to {said.last} and has {head.length}"
    )


def _refused(head: Head, message: str) -> GlanceRefusedError:
    return GlanceRefusedError(message, glance_status=head.status)


def parse_content_range(text: str | None) -> ContentRange | None:
    """Read a Content-Range; None where there is none, or none that makes sense."""
    pattern = r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)"
    match = re.fullmatch(pattern, (text or "").strip(), re.ASCII)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if first > last or (total is not None and last >= total):
        return None
    return ContentRange(first=first, last=last, total=total)


def parse_range(text: str, size: int) -> range:
    """Give the bytes that a Range with a single part (section 14.1.2) means in ``size`` bytes.

    Raises: ``ValueError`` where that is none.
    """
    match = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", text.strip(), re.ASCII)
    if match is None or not (match[1] or match[2]):
        raise ValueError("is not a range of bytes")
    if not match[1]:
        wanted = range(max(0, size - int(match[2])), size)
    else:
        wanted = range(int(match[1]), min(size, int(match[2]) + 1) if match[2] else size)
    if not wanted:
        raise ValueError(f"has no byte in common with {size} bytes")
    return wanted


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Read a Retry-After (section 10.2.3), a number or a date, as seconds from ``now``."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        return float(text.strip())
    try:
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - now).total_seconds())
    except (ValueError, OverflowError):  # no date, or one that no calendar has
        return None


def brief(text: str) -> str:
    """Give the beginning of what a server said: problems and lines of the log stay short."""
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}…"


def plain_url(text: str) -> str:
    """Give scheme, host and path of an address, which may be shown to anybody.

    A user, a password, a query (a signature) and a fragment are left out; so is all of what is
    no address, and the end of a long one.
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return brief(urlunsplit((parts.scheme, host, parts.path, "", "")))
