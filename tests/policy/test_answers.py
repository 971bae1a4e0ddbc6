"""What the download and the image service can count on when they read headers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheagent.errors import GlanceRefusedError, GlanceUnavailableError
from cacheagent.policy.answers import (
    Head,
    Placement,
    parse_content_range,
    parse_range,
    parse_retry_after,
    place_body,
    plain_url,
)

SIZE = 100


@pytest.mark.parametrize(
    ("head", "position", "skip"),
    [
        pytest.param(Head(status=200, length=100), 0, 0, id="whole, as asked"),
        pytest.param(Head(status=200), 0, 0, id="whole, without a length"),
        pytest.param(Head(status=200, length=100), 40, 40, id="200 in place of 206"),
        pytest.param(
            Head(status=206, length=60, content_range="bytes 40-99/100"), 40, 0, id="the rest"
        ),
        pytest.param(
            Head(status=206, content_range="bytes 40-99/100"), 40, 0, id="the rest, chunked"
        ),
        pytest.param(
            Head(status=206, length=60, content_range="bytes 40-99/*"), 40, 0, id="total not told"
        ),
        pytest.param(
            Head(status=206, length=100, content_range="bytes 40-99/100"),
            40,
            40,
            id="206 with the whole body, the length tells",
        ),
        pytest.param(
            Head(status=206, length=100, content_range="bytes 0-99/100"),
            40,
            40,
            id="206 with the whole body, the range tells",
        ),
        pytest.param(Head(status=206, length=100), 40, 40, id="206 of the whole length"),
        pytest.param(Head(status=206, length=60), 40, 0, id="206 of the length of the rest"),
        pytest.param(
            Head(status=200, length=100, content_encoding="Identity"), 0, 0, id="not encoded"
        ),
    ],
)
def test_a_body_is_placed_where_it_really_begins(head: Head, position: int, skip: int) -> None:
    """Whatever the server made of the Range, the right bytes are dropped before the first new."""
    assert place_body(head, position=position, size=SIZE) == Placement(skip=skip, total=SIZE)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(Head(status=204), id="no body: the file is gone from the store"),
        pytest.param(Head(status=202, length=100), id="a status that no data have"),
        pytest.param(Head(status=200, length=99), id="shorter than the image"),
        pytest.param(Head(status=200, length=101), id="longer than the image"),
        pytest.param(
            Head(status=206, length=59, content_range="bytes 40-98/99"), id="another total"
        ),
        pytest.param(Head(status=200, length=100, content_encoding="gzip"), id="encoded"),
    ],
)
def test_an_answer_that_contradicts_the_metadata_is_refused(head: Head) -> None:
    """Such an answer is no image, and the error bears its status."""
    with pytest.raises(GlanceRefusedError) as caught:
        place_body(head, position=40, size=SIZE)
    assert caught.value.glance_status == head.status


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(
            Head(status=206, length=50, content_range="bytes 50-99/100"), id="begins too late"
        ),
        pytest.param(
            Head(status=206, length=80, content_range="bytes 20-99/100"), id="begins too early"
        ),
        pytest.param(
            Head(status=206, length=10, content_range="bytes 40-49/100"), id="ends too early"
        ),
        pytest.param(
            Head(status=206, length=33, content_range="bytes 40-99/100"), id="another length"
        ),
        pytest.param(Head(status=206, length=33), id="says nothing and has an odd length"),
        pytest.param(Head(status=206), id="says nothing at all"),
    ],
)
def test_a_part_that_was_not_asked_for_is_a_failure(head: Head) -> None:
    """Another attempt may get a better part, so this is not the end."""
    with pytest.raises(GlanceUnavailableError):
        place_body(head, position=40, size=SIZE)


@pytest.mark.parametrize(
    "head",
    [
        Head(status=200, length=100),
        Head(status=206, length=60, content_range="bytes 40-99/100"),
        Head(status=206, length=60, content_range="bytes 40-99/*"),
    ],
)
def test_the_answer_tells_the_size_where_the_metadata_do_not(head: Head) -> None:
    """An image of unknown size gets one from the first answer that has data."""
    assert place_body(head, position=40, size=None).total == SIZE


def test_without_any_size_the_end_of_a_body_proves_nothing() -> None:
    """Neither metadata nor a length: a cut could not be told from the end, so it is refused."""
    with pytest.raises(GlanceRefusedError):
        place_body(Head(status=200), position=0, size=None)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes */100",
        "bytes 9-3/100",
        f"bytes 0-{'9' * 5000}/*",
        "bytes 0-100/100",
        "octets 0-9/10",
        "x",
    ],
)
def test_a_content_range_without_sense_is_none(text: str | None) -> None:
    """Nonsense counts as not told."""
    assert parse_content_range(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=10-", range(10, 100)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=90-1000", range(90, 100)),
        ("bytes=-5", range(95, 100)),
        ("bytes=-1000", range(100)),
    ],
)
def test_a_range_names_bytes_of_the_file(text: str, expected: range) -> None:
    """First and last are inclusive, either may be left out, the end may lie beyond the file."""
    assert parse_range(text, SIZE) == expected


@pytest.mark.parametrize(
    "text", ["bytes=100-", "bytes=9-3", "bytes=-0", "bytes=-", "bytes=a-b", "lines=1-2", "bytes"]
)
def test_a_range_that_names_no_byte_is_an_error(text: str) -> None:
    """Beyond the end, backwards, empty or nonsense: no bytes can be sent for it."""
    with pytest.raises(ValueError, match=r"is not a range|no byte in common"):
        parse_range(text, SIZE)


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("7", 7.0),
        ("soon", None),
        ("-3", None),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:00:00 +99999999999999999999", None),
        ("Thu, 32 Jan 2026 00:00:00 GMT", None),
    ],
)
def test_a_retry_after_is_seconds_from_now(text: str | None, expected: float | None) -> None:
    """Numbers and dates are understood, anything else counts as not told."""
    assert parse_retry_after(text, NOW) == expected


@given(
    st.text(max_size=60)
    | st.from_regex(r"[A-Z][a-z]{2}, \d{1,30} Jan \d{1,30} \d{1,30}:\d\d:\d\d( [+-]\d{1,30})?")
)
def test_no_retry_after_makes_it_fail(text: str) -> None:
    """Whatever a server sends, there is a time to wait, or none is told."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://image.test:9292/v2/a", "https://image.test:9292/v2/a"),
        ("https://user:secret@image.test/a?sig=secret#secret", "https://image.test/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("//user@image.test/a", "//image.test/a"),
        ("/v2/a?sig=secret", "/v2/a"),
        ("http://[secret", ""),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(text: str, expected: str) -> None:
    """Scheme, host and path tell an operator enough."""
    assert plain_url(text) == expected
