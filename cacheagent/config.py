"""The configuration: TOML becomes one frozen ``Config``, or an error that names the key.

Attributes are named as the keys are: ``config.glance.connect_timeout`` is
``glance.connect_timeout``. Sizes are bytes, durations seconds, file modes integers. What each key
means stands in ``config.example.toml``, which a test holds to these models.

A key that is left out has its default; TOML has no null, so a default of None can only be had
by leaving the key out. Paths are absolute: a daemon has no folder to be relative to.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from cacheagent import mistakes
from cacheagent.configtypes import (
    AbsolutePath,
    Duration,
    FileMode,
    HostPort,
    Listen,
    ListOf,
    OneOrMore,
    OverlayOptions,
    PathPattern,
    Percent,
    PositiveDuration,
    PositiveSize,
    ProgramMemory,
    ProgramTime,
    Size,
    SocketPath,
    Text,
    Url,
)
from cacheagent.errors import ConfigError
from cacheagent.model import SandboxKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

ImageFormat = Literal["raw", "qcow2", "iso", "vmdk", "vdi", "vhd", "vhdx", "ami", "aki", "ari"]
"""The disk formats of Glance that an image may be admitted with."""

WITHOUT_EFFECT = frozenset(
    {
        "glance.mirrors",
    }
)
"""Keys that this version reads and checks, and that change nothing yet."""

RELOADABLE = frozenset(
    {
        "eviction.high_watermark",
        "eviction.interval",
        "eviction.low_watermark",
        "eviction.max_idle",
        "eviction.max_size",
        "eviction.min_age",
        "eviction.min_free",
        "eviction.min_keep",
        "glance.access_ttl",
        "glance.failure_ttl",
        "glance.revalidate_interval",
        "images.allowed_formats",
        "images.base_format",
        "images.certificates_dir",
        "images.max_size",
        "images.max_virtual_size",
        "images.signature_ca_file",
        "images.verify_signatures",
        "log.format",
        "log.level",
        "quarantine.max_age",
        "quarantine.max_size",
        "scrub.bytes_per_second",
        "scrub.interval",
    }
)
"""Keys that a running daemon takes over; every other one waits for the next start."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ApiConfig(_Section):
    """``[api]``: where the API listens, and who may speak to it over TCP, and how much.

    ``requests_per_second`` is for each peer; 0 = any number.
    """

    socket: SocketPath = Path("/run/cacheagent/api.sock")
    socket_mode: FileMode = 0o660
    socket_group: Text | None = None
    listen: Listen = None
    tls_cert: AbsolutePath | None = None
    tls_key: AbsolutePath | None = None
    tls_client_ca: AbsolutePath | None = None
    token_file: AbsolutePath | None = None
    require_token: bool = False
    max_connections: Annotated[int, Field(ge=16)] = 2048
    requests_per_second: Annotated[int, Field(ge=0)] = 5000

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("api.tls_cert and api.tls_key go together: one of them is missing")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("api.tls_client_ca needs api.tls_cert and api.tls_key")
        if self.listen:
            self.check_guarded(self.listen, "api.listen")
        return self

    def check_guarded(self, where: HostPort, key: str) -> None:
        """Raise ``ValueError``, which begins with ``key``, if others can reach ``where`` unasked.

        What is not loopback has TLS, and client certificates or bearer tokens.
        """
        if where.is_loopback:
            return
        if not self.tls_cert:
            raise ValueError(f"{key} {where} is not loopback: set api.tls_cert, api.tls_key")
        if not self.tls_client_ca and not self.token_file:
            raise ValueError(
                f"{key} {where} is not loopback: set api.tls_client_ca or api.token_file"
            )


class MetricsConfig(_Section):
    """``[metrics]``: where metrics and health are served over plain HTTP; None = nowhere."""

    listen: Listen = HostPort("127.0.0.1", 9877)


class StorageConfig(_Section):
    """``[storage]``: where files lie, and whose they are."""

    state_dir: AbsolutePath = Path("/var/lib/cacheagent")
    instances_dir: AbsolutePath = Field(
        default_factory=lambda data: data["state_dir"] / "instances"
    )
    scan_dirs: ListOf[AbsolutePath] = ()
    file_group: Text | None = None
    disk_mode: FileMode = 0o660

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.state_dir.is_relative_to(self.instances_dir):
            raise ValueError("storage.instances_dir must not hold storage.state_dir")
        return self


class GlanceConfig(_Section):
    """``[glance]``: where images come from. ``endpoint`` empty = from the catalogue."""

    cloud: Text | None = None
    auth: Literal["keystone", "none"] = "keystone"
    endpoint: OneOrMore[Url] = ()
    region: Text | None = None
    interface: Literal["public", "internal", "admin"] | None = None
    ca_file: AbsolutePath | None = None
    mirrors: ListOf[Url] = ()
    connect_timeout: PositiveDuration = 10.0
    stall_timeout: PositiveDuration = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    concurrency: Annotated[int, Field(ge=1)] = 4
    bandwidth_limit: PositiveSize | None = None
    revalidate_interval: Duration = 3600.0
    access_ttl: Duration = 60.0
    failure_ttl: Duration = 5.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.auth == "none":
            if not self.endpoint:
                raise ValueError('glance.auth = "none" needs glance.endpoint')
            for key in ("cloud", "region", "interface"):
                if getattr(self, key) is not None:
                    raise ValueError(f'glance.{key} contradicts glance.auth = "none"')
        return self


class ImagesConfig(_Section):
    """``[images]``: which images may come in, and what becomes of them."""

    base_format: Literal["raw", "keep"] = "raw"
    allowed_formats: Annotated[ListOf[ImageFormat], Field(min_length=1)] = get_args(ImageFormat)
    max_size: PositiveSize = 200 << 30
    max_virtual_size: PositiveSize = 2 << 40
    verify_signatures: bool = False
    signature_ca_file: AbsolutePath | None = None
    certificates_dir: AbsolutePath | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.verify_signatures and not (self.signature_ca_file or self.certificates_dir):
            raise ValueError(
                "images.verify_signatures needs images.signature_ca_file or"
                " images.certificates_dir: somebody has to say whose signatures count"
            )
        return self


class EvictionConfig(_Section):
    """``[eviction]``: the bounds of the cache. ``max_idle`` 0 = never for being idle."""

    max_size: PositiveSize | None = None
    high_watermark: Percent = 85
    low_watermark: Percent = 75
    min_free: Size = 5 << 30
    min_keep: Size = 0
    min_age: Duration = 600.0
    max_idle: Duration = 604800.0
    interval: PositiveDuration = 30.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low_watermark >= self.high_watermark:
            raise ValueError(
                f"eviction.low_watermark ({self.low_watermark}) must be below"
                f" eviction.high_watermark ({self.high_watermark})"
            )
        if self.max_size is not None and self.min_keep > self.max_size:
            raise ValueError("eviction.min_keep must not be above eviction.max_size")
        if self.max_idle and self.max_idle < self.min_age:
            raise ValueError("eviction.max_idle must not be below eviction.min_age")
        return self


class QuarantineConfig(_Section):
    """``[quarantine]``: the bounds of what was refused. ``max_size`` 0 keeps nothing.

    ``max_age`` 0 = no bound.
    """

    max_size: Size = 5 << 30
    max_age: Duration = 604800.0


class ScrubConfig(_Section):
    """``[scrub]``: how often, and how fast, bases are read again. ``interval`` 0 = off."""

    interval: Duration = 604800.0
    bytes_per_second: PositiveSize = 50 << 20


class OverlayConfig(_Section):
    """``[overlay]``: how overlays are made."""

    options: OverlayOptions = ""


class QemuConfig(_Section):
    """``[qemu]``: the programs of QEMU and their limits."""

    qemu_img: Text = "qemu-img"
    # qemu-img convert -m takes no more than 16.
    convert_threads: Annotated[int, Field(ge=1, le=16)] = 2
    cpu_time_limit: ProgramTime = 60.0
    memory_limit: ProgramMemory = 2 << 30
    sandbox: Literal["auto", "systemd", "bubblewrap", "rlimits"] = "auto"
    sandbox_socket: SocketPath = Path("/run/cacheagent/sandbox.sock")
    qmp_sockets: ListOf[PathPattern] = ()

    @property
    def wanted_sandbox(self) -> SandboxKind | None:
        """What qemu-img has to be shut in by; None = the safest that works."""
        return None if self.sandbox == "auto" else SandboxKind(self.sandbox)


class LogConfig(_Section):
    """``[log]``: what is logged to stderr, and how."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["text", "json"] = "text"


class Reload(NamedTuple):
    """What a reload came to: the configuration to run with, and the keys that changed.

    ``changed`` are in ``config``; ``needs_restart`` keep their old values there.
    """

    config: Config
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Config(_Section):
    """The whole configuration, complete with defaults."""

    api: ApiConfig = Field(default_factory=ApiConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    glance: GlanceConfig = Field(default_factory=GlanceConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    eviction: EvictionConfig = Field(default_factory=EvictionConfig)
    quarantine: QuarantineConfig = Field(default_factory=QuarantineConfig)
    scrub: ScrubConfig = Field(default_factory=ScrubConfig)
    overlay: OverlayConfig = Field(default_factory=OverlayConfig)
    qemu: QemuConfig = Field(default_factory=QemuConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @classmethod
    def all_keys(cls) -> tuple[str, ...]:
        """Name every key there is, dotted."""
        return tuple(_values(cls()))

    def without_effect(self) -> tuple[str, ...]:
        """Name the keys whose values are not the default, and change nothing in this version."""
        values, defaults = _values(self), _values(type(self)())
        return tuple(key for key in sorted(WITHOUT_EFFECT) if values[key] != defaults[key])

    def reload_from(self, new: Config) -> Reload:
        """Take over from ``new`` what can change while the daemon runs, and say what cannot."""
        old_values, new_values = _values(self), _values(new)
        changed = sorted(key for key, value in new_values.items() if value != old_values[key])
        merged = {name: _merge(name, old, getattr(new, name)) for name, old in _sections(self)}
        return Reload(
            config=Config.model_construct(set(merged), **merged),
            changed=tuple(key for key in changed if key in RELOADABLE),
            needs_restart=tuple(key for key in changed if key not in RELOADABLE),
        )


def _sections(config: Config) -> Iterator[tuple[str, _Section]]:
    return ((name, section) for name, section in config if isinstance(section, _Section))


def _values(config: Config) -> dict[str, object]:
    return {f"{name}.{key}": value for name, section in _sections(config) for key, value in section}


def _merge(name: str, old: _Section, new: _Section) -> Any:  # noqa: ANN401 -- whatever ``old`` is
    """Copy ``old`` with what ``new`` has for the keys that can be reloaded."""
    kind = type(old)
    source = {key: new if f"{name}.{key}" in RELOADABLE else old for key in kind.model_fields}
    return kind.model_construct(
        {key for key, section in source.items() if key in section.model_fields_set},
        **{key: getattr(section, key) for key, section in source.items()},
    )


def parse_config(data: Mapping[str, object]) -> Config:
    """Make a configuration of what TOML holds.

    Raises: ``ConfigError`` that names each key that is unknown, has a wrong value, or contradicts
    another one.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        # A default that builds on a wrong value fails with it, and is no mistake of its own.
        found = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        raise ConfigError("; ".join(map(_sentence, found))) from error


def load_config(path: Path) -> Config:
    """Read a configuration file. It blocks: call it off the event loop.

    Raises: ``ConfigError`` as ``parse_config`` does, and where the file cannot be read or is no
    TOML; the message begins with the path.
    """
    try:
        return parse_config(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _sentence(mistake: ErrorDetails) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return f"{key}: unknown key{_guess(key)}"
    if mistake["type"] == "value_error":
        told = str(mistake["ctx"]["error"])
        # A section's own check names the keys itself.
        return told if "." not in key else f"{key}: {told}"
    return f"{key}: {mistakes.sentence(mistake)}"


def _guess(key: str) -> str:
    """Offer the known key that is nearest: by its whole name, or by its last part."""
    known = [*Config.all_keys(), *Config.model_fields]
    last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [last[word] for word in difflib.get_close_matches(key.rpartition(".")[2], last)]
    return f" (did you mean {near[0]}?)" if near else ""
