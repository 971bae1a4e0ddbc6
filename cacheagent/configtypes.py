"""The types of configuration keys: what is accepted for each, and what comes of it.

Each is an annotated type for pydantic: a value that does not fit raises ``ValueError`` with a
sentence that follows the name of the key.
"""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from cacheagent.units import parse_duration, parse_size

_OPTIONS_OF_OURS = {"backing_file", "backing_fmt", "data_file", "data_file_raw", "size"}
T = TypeVar("T")

_LAST_PORT = 65535
_EVERY_PERMISSION = 0o777
_LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket, without the NUL at its end (unix(7))."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen on TCP: an address or a name, without brackets, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Take ``host:port`` or ``[IPv6]:port``; ``ValueError`` says what is wrong with it."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif not host or ":" in host:
            raise ValueError("is not host:port (an IPv6 address stands in brackets)")
        if not colon or not port.isdecimal() or int(port) > _LAST_PORT:
            raise ValueError("does not end in a port number")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than localhost counts as no."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _size(value: object) -> int:
    number = parse_size(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError('must be a number of bytes or a text like "50GiB"')  # noqa: TRY004 -- pydantic
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _duration(value: object) -> float:
    number = parse_duration(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError('must be a number of seconds or a text like "10m"')  # noqa: TRY004 -- pydantic
    if number < 0 or not math.isfinite(number):
        raise ValueError("must not be negative nor without end")
    return float(number)


def _file_mode(value: object) -> int:
    if isinstance(value, str) and value.isdecimal() and not set(value) & {"8", "9"}:
        value = int(value, 8)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _EVERY_PERMISSION:
        raise ValueError('must be an octal file mode, as "0660" or 0o660')
    return value


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("must be an absolute path")
    return Path(value)


def _socket_path(value: Path) -> Path:
    if len(os.fsencode(value)) > _LONGEST_SOCKET:
        raise ValueError(
            f"must not be longer than {_LONGEST_SOCKET} bytes: no socket can lie there"
        )
    return value


def _listen(value: object) -> HostPort | None:
    if value is None or isinstance(value, HostPort):
        return value
    if not isinstance(value, str):
        raise ValueError('must be a text like "127.0.0.1:9877"')  # noqa: TRY004 -- pydantic
    return HostPort.parse(value) if value else None


def _one_or_more(value: object) -> object:
    return _tuple([value] if isinstance(value, str) else value)


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("is not the address of an HTTP service")
    if "@" in parts.netloc:  # it is logged and shown
        raise ValueError("must not hold a user name or a password")
    return value.rstrip("/")


def _tuple(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list")  # noqa: TRY004 -- pydantic takes no TypeError
    return tuple(value)


def _pattern(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must be an absolute path")
    return value


def _options(value: str) -> str:
    pairs = [option.partition("=") for option in value.split(",")]
    if taken := sorted({name.strip() for name, _, _ in pairs} & _OPTIONS_OF_OURS):
        raise ValueError(f"must not name {', '.join(taken)}: cacheagent sets it itself")
    if any(name.strip() == "preallocation" and wanted != "off" for name, _, wanted in pairs):
        raise ValueError(
            "must not name preallocation: an overlay has nothing of its own to allocate"
        )
    return value


def _program_time(value: float) -> float:
    if value < 1:
        raise ValueError('must be at least "1s": the system counts whole seconds')
    return value


def _program_memory(value: int) -> int:
    if value < 64 << 20:
        raise ValueError('must be at least "64MiB": with less qemu-img does not begin')
    return value


Size = Annotated[int, BeforeValidator(_size)]
PositiveSize = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Duration = Annotated[float, BeforeValidator(_duration)]
PositiveDuration = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
ProgramMemory = Annotated[int, BeforeValidator(_size), AfterValidator(_program_memory)]
ProgramTime = Annotated[float, BeforeValidator(_duration), AfterValidator(_program_time)]
FileMode = Annotated[int, BeforeValidator(_file_mode)]
AbsolutePath = Annotated[Path, BeforeValidator(_path)]
SocketPath = Annotated[Path, BeforeValidator(_path), AfterValidator(_socket_path)]
Listen = Annotated[HostPort | None, BeforeValidator(_listen)]
Text = Annotated[str, Field(min_length=1)]
PathPattern = Annotated[str, AfterValidator(_pattern)]
Url = Annotated[Text, AfterValidator(_url)]
Percent = Annotated[int, Field(ge=1, le=100)]
OverlayOptions = Annotated[str, AfterValidator(_options)]
ListOf = Annotated[tuple[T, ...], BeforeValidator(_tuple)]
OneOrMore = Annotated[tuple[T, ...], BeforeValidator(_one_or_more)]
