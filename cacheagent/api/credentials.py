"""What TCP demands of those who come: TLS, a certificate of their own, a bearer token."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import stat
from typing import TYPE_CHECKING, Self

from cacheagent.api.guards import parse_digests
from cacheagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cacheagent.config import ApiConfig


class Credentials:
    """What stands in the files that the configuration names, as they were read last.

    The files may be links: certificates are often renewed by moving one.
    """

    def __init__(self, config: ApiConfig) -> None:
        """Take what names the files; ``load`` reads them."""
        self._config = config
        self._tls: ssl.SSLContext | None = None
        self._bearers: frozenset[bytes] | None = None

    @classmethod
    async def load(cls, config: ApiConfig) -> Self:
        """Read the files.

        Raises:
            ConfigError: a file cannot be used.

        """
        loaded = cls(config)
        await loaded.reload()
        return loaded

    async def reload(self) -> None:
        """Read the files again; connections that are open are not asked again.

        Raises:
            ConfigError: a file cannot be used; everything stays as it was.

        """
        tls = await asyncio.to_thread(_load_tls, self._config)
        self._bearers = await asyncio.to_thread(_load_digests, self._config)
        self._tls = tls

    def tls(self) -> ssl.SSLContext | None:
        """Give what a connection over TCP is secured with; None where it is not."""
        return self._tls

    def bearers(self) -> frozenset[bytes] | None:
        """Give the digests of the bearer tokens that TCP demands; None where it demands none."""
        return self._bearers


def _load_digests(config: ApiConfig) -> frozenset[bytes] | None:
    path = config.token_file
    if path is None:
        return None
    try:
        _refuse_open_file(path)
        return parse_digests(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"api.token_file: {path}: {why}") from error


def _refuse_open_file(path: Path) -> None:
    """Refuse a file to which anybody could add a token; what is read there gives none away."""
    if path.stat().st_mode & stat.S_IWOTH:
        raise ValueError("everybody may write to it")


def _load_tls(config: ApiConfig) -> ssl.SSLContext | None:
    certificate = config.tls_cert
    if certificate is None:
        return None
    with _telling("api.tls_client_ca", config.tls_client_ca):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _telling("api.tls_cert, api.tls_key", certificate, config.tls_key):
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, config.tls_key, password="")
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _telling(keys: str, *files: Path | None) -> Iterator[None]:
    """Name the keys and files of the configuration that OpenSSL complains of."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        named = ", ".join(str(file) for file in files if file is not None)
        raise ConfigError(f"{keys}: {named}: {error.strerror or error}") from error
