"""Server-sent events, line by line (HTML, section 9.2), as the daemon sends them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cacheagent.client.calls import Call
from cacheagent.errors import RequestFailedError

if TYPE_CHECKING:
    from cacheagent.client.shapes import EventShape

MEDIA_TYPE = "text/event-stream"

RECONNECT_SECONDS = 1.0
"""How long to wait before going on behind a cut."""

SILENCE_SECONDS = 60.0
"""A silence so long is a cut: the daemon sends a comment each 15 seconds."""


class Lines:
    """Puts lines together to events; ``last`` is the id of the event that came last."""

    def __init__(self, after: str | None) -> None:
        self.last = after
        self._fields: dict[str, str] = {}

    def call(self) -> Call:
        """Ask for what happens behind the last event, on a new connection."""
        self._fields.clear()
        resume = {} if self.last is None else {"Last-Event-ID": self.last}
        return Call(method="GET", path="/v1/events", headers={"Accept": MEDIA_TYPE, **resume})

    def feed(self, line: bytes) -> EventShape | None:
        """Take one line, and give the event that it ends, if it ends one.

        Raises: ``RequestFailedError`` for the problem that ends a stream.
        """
        text = line.decode().rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        data = json.loads(fields["data"])
        if fields["event"] == "problem":
            raise RequestFailedError(data["detail"], status=data["status"], problem=data)
        self.last = fields["id"]
        return {"id": fields["id"], "event": fields["event"], "data": data}
