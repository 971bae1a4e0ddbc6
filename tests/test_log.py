"""What stands in the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
import os
from typing import TYPE_CHECKING, cast

import pytest
import structlog

from cacheagent.log import configure, under_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """Leave the log of the test run as it was before."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def _log(name: str = "test") -> structlog.stdlib.BoundLogger:
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


def _log_failure(message: str) -> None:
    error = ValueError(message)
    _log().error("failed", exc_info=error)


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("level", "told"), [("info", []), ("debug", ["Safety check failed"])])
def test_the_inspector_warns_of_nothing_by_itself(level: str, told: list[str]) -> None:
    """An image that is let in raises no alarm, though one of the inspectors has found it odd."""
    stream = io.StringIO()
    configure(level, "json", stream=stream)
    logging.getLogger("oslo_utils.imageutils.format_inspector").warning("Safety check failed")
    assert [line["event"] for line in _lines(stream)] == told


def test_json_has_one_object_a_line_with_the_request_id() -> None:
    """A program finds every line of one request."""
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="req-7"):
        _log().info("disk created", size=3)
    _log().debug("too fine")
    (line,) = _lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "disk created",
        "level": "info",
        "logger": "test",
        "request_id": "req-7",
        "size": 3,
    }


def test_work_for_many_requests_names_the_one_that_began_it() -> None:
    """Work that no request began bears no id; else the lines inside bear it, and none after."""
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    for request_id in ("req-9", None):
        with under_request(request_id):
            _log().info("inside")
    _log().info("after")
    assert [line.get("request_id") for line in _lines(stream)] == ["req-9", None, None]


def test_the_standard_library_logs_the_same_way() -> None:
    """What aiohttp has to say reads like the rest, and belongs to its request."""
    stream = io.StringIO()
    configure("warning", "json", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="req-8"):
        logging.getLogger("aiohttp.server").warning("slow by %d s", 3)
    (line,) = _lines(stream)
    assert (line["logger"], line["event"], line["request_id"]) == (
        "aiohttp.server",
        "slow by 3 s",
        "req-8",
    )


def test_a_reload_changes_level_and_format_without_a_second_line() -> None:
    """After a reload each line comes once, in the new form, also from old loggers."""
    first, second = io.StringIO(), io.StringIO()
    configure("error", "json", stream=first)
    log = _log()
    configure("debug", "text", stream=second)
    log.debug("seen")
    assert first.getvalue() == ""
    assert second.getvalue().count("seen") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tokens_are_never_logged(log_format: str) -> None:
    """Not as a value, not in headers, not in a text, not in a traceback."""
    stream = io.StringIO()
    configure("debug", log_format, stream=stream)
    fernet = "gAAAAAB" + "x" * 80
    headers = {"X-Auth-Token": "s3cret"}
    value = "s3cret"
    _log().info(f"got {fernet}", token=value, headers=headers, all=[fernet])
    logging.getLogger("k").info("sent %s", {"X-Service-Token": "s3cret"})
    logging.getLogger("k").info("curl -H 'X-Auth-Token: s3cret' -H 'Authorization: Bearer s3cret'")
    _log_failure(f"X-Subject-Token: s3cret and {fernet}")
    text = stream.getvalue()
    assert "s3cret" not in text
    assert fernet not in text
    assert text.count("***") >= 8


def test_an_exception_is_told_with_its_traceback() -> None:
    """Whoever reads the log sees where it came from."""
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    _log_failure("no such thing")
    assert "ValueError: no such thing" in str(_lines(stream)[0]["exception"])


@pytest.mark.parametrize("journal", [True, False])
def test_the_journal_gets_no_second_time(tmp_path: Path, *, journal: bool) -> None:
    """Under systemd a line of text has no time of its own: the journal has it."""
    with (tmp_path / "log").open("w+") as stream:
        stat = os.fstat(stream.fileno())
        inode = stat.st_ino if journal else stat.st_ino + 1
        environ = {"JOURNAL_STREAM": f"{stat.st_dev}:{inode}"}
        configure("info", "text", stream=stream, environ=environ)
        _log().info("hello")
        stream.seek(0)
        assert stream.read().startswith("[info") is journal
