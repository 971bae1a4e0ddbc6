"""What both clients have in common: where the daemon is, what is asked, what an answer means."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote, urlsplit

from cacheagent.errors import DaemonUnreachableError, RequestFailedError

if TYPE_CHECKING:
    from cacheagent.client.shapes import DiskWish

DEFAULT_SOCKET = "/run/cacheagent/api.sock"
SOCKET_VARIABLE = "CACHEAGENT_SOCKET"

TRIES = 6
"""How often a request is sent that is refused because there are too many."""

_FIRST_PROBLEM = 400
_TOO_MANY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the daemon is: ``path`` of a Unix socket, else ``host`` and ``port`` of TCP."""

    text: str
    path: str | None = None
    host: str = "localhost"
    port: int | None = None
    tls: bool = False

    @classmethod
    def find(cls, text: str | None) -> Address:
        """Take the address given, else that of ``$CACHEAGENT_SOCKET``, else the default.

        Raises: ``DaemonUnreachableError`` for a URL that leads to no daemon.
        """
        text = text or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
        if not text.startswith(("http://", "https://")):
            return cls(text=text, path=text)
        try:
            parts = urlsplit(text)
            tls = parts.scheme == "https"
            port = parts.port or (443 if tls else 80)
        except ValueError as error:
            raise DaemonUnreachableError(f"{text} is no address of a daemon: {error}") from error
        return cls(text=text, host=parts.hostname or "", port=port, tls=tls)

    @property
    def origin(self) -> str:
        """The URL that paths are put behind."""
        if self.port is None:
            return "http://localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"

    def unreachable(self, error: Exception) -> DaemonUnreachableError:
        """Say that no daemon answers here, and why."""
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        hint = ""
        if self.path is not None and re.fullmatch(r"[^/]+:\d+", self.path):
            hint = f" (that is the path of a socket; for TCP: http://{self.path})"
        return DaemonUnreachableError(
            f"no daemon answers at {self.text}: {told or repr(error)}{hint}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf to ask: a Keystone token, a bearer token of the daemon, a request id."""

    token: str | None = None
    bearer: str | None = None
    request_id: str | None = None

    def headers(self) -> dict[str, str]:
        """Give the headers that say so."""
        headers = {"X-Auth-Token": self.token, "X-OpenStack-Request-ID": self.request_id}
        if self.bearer is not None:
            headers["Authorization"] = f"Bearer {self.bearer}"
        return {name: value for name, value in headers.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to the API; ``path`` is encoded, ``body`` becomes JSON where it is not None."""

    method: str
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes | None:
        """Give the body as bytes."""
        return None if self.body is None else json.dumps(self.body).encode()

    def all_headers(self, caller: Caller) -> dict[str, str]:
        """Give the headers of the request, those of its caller among them."""
        headers = {"Accept": "application/json", **caller.headers(), **self.headers}
        return headers if self.body is None else headers | {"Content-Type": "application/json"}


def create_disk(instance_id: str, name: str, wish: DiskWish, *, wait: bool) -> Call:
    """Ask for a disk; without ``wait`` the answer may be a disk that is ``pending``."""
    return Call(
        method="PUT",
        path=disk_path(instance_id, name),
        body={key: value for key, value in wish.items() if value is not None},
        headers={} if wait else {"Prefer": "respond-async"},
    )


def pull(image_id: str, *, pin: bool, wait: bool) -> Call:
    """Ask for an image to be brought in."""
    return Call(method="PUT", path=image_path(image_id), body={"pin": pin, "wait": wait})


def pin(image_id: str) -> Call:
    """Ask for an image to be kept."""
    return Call(method="PUT", path=pin_path(image_id))


def verify(image_id: str) -> Call:
    """Ask for a base to be read again."""
    return Call(method="POST", path=f"{image_path(image_id)}/verify")


def prune(*, dry_run: bool, free_bytes: int | None) -> Call:
    """Ask for a pass of eviction."""
    body = {"dry_run": dry_run, "free_bytes": free_bytes}
    return Call(method="POST", path="/v1/prune", body=body)


def why_path(image_id: str) -> str:
    """Give the path of the reasons for which an image stays or goes."""
    return f"{image_path(image_id)}/why"


def get(path: str) -> Call:
    """Ask for what is at the path."""
    return Call(method="GET", path=path)


def delete(path: str) -> Call:
    """Ask for the end of what is at the path."""
    return Call(method="DELETE", path=path)


def instance_path(instance_id: str) -> str:
    """Give the path of an instance."""
    return f"/v1/instances/{_segment(instance_id)}"


def disk_path(instance_id: str, name: str) -> str:
    """Give the path of a disk."""
    return f"{instance_path(instance_id)}/disks/{_segment(name)}"


def image_path(image_id: str) -> str:
    """Give the path of an image."""
    return f"/v1/images/{_segment(image_id)}"


def pin_path(image_id: str) -> str:
    """Give the path of the pin of an image."""
    return f"{image_path(image_id)}/pin"


def _segment(text: str) -> str:
    """Encode a name so that it stays one segment: neither a slash nor dots lead elsewhere."""
    return quote(text, safe="").replace(".", "%2E")


def wait_before_again(status: int, retry_after: str | None, tried: int) -> float | None:
    """Give the seconds to wait before the same request is sent again; None: not again.

    That is so for what the daemon did not even begin with, since it was asked too often. Callers
    that were refused together come back one by one.
    """
    if status != _TOO_MANY or tried >= TRIES or not (retry_after or "").isdecimal():
        return None
    spread = random.uniform(1, 2)  # noqa: S311 -- it spreads requests, and keeps no secret
    return int(retry_after or 0) * spread


def answer(address: Address, status: int, retry_after: str | None, body: bytes) -> object:
    """Give the JSON of an answer, None where it is empty.

    Raises: ``RequestFailedError`` for a problem; ``DaemonUnreachableError`` for what no daemon of
    ours would answer.
    """
    if not body and status < _FIRST_PROBLEM:
        return None
    try:
        document = json.loads(body)
    except ValueError as error:
        raise DaemonUnreachableError(
            f"what answers at {address.text} is no cacheagent: status {status} without JSON"
        ) from error
    if status < _FIRST_PROBLEM:
        return document
    problem = dict(document) if isinstance(document, Mapping) else {}
    if retry_after is not None and retry_after.isdecimal():
        problem["retry_after"] = int(retry_after)
    message = problem.get("detail") or problem.get("title") or f"the daemon answered {status}"
    raise RequestFailedError(str(message), status=status, problem=problem)


def refuse(address: Address, status: int, retry_after: str | None, body: bytes) -> NoReturn:
    """Raise for an answer that is not the stream that was asked for, as ``answer`` does."""
    answer(address, status, retry_after, body)
    raise DaemonUnreachableError(f"what answers at {address.text} has no events to tell")
