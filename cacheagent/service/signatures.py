"""Before an image is read: what its signature has to be checked with, if it has to be checked."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cacheagent.backends import signing
from cacheagent.errors import GlanceUnavailableError, ImageUnacceptableError
from cacheagent.model import UUID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography import x509

    from cacheagent.backends.signing import SignatureCheck
    from cacheagent.model import Caller, GlanceImage, ImageSignature
    from cacheagent.service.parts import Parts

LONGEST = 1 << 20
"""Bytes of a file of certificates, at the most."""


@dataclass(frozen=True, slots=True)
class _Trusted:
    """What files of the operator say now: a certificate and the authorities, None where none is."""

    certificate: bytes | None
    authorities: bytes | None

    def fingerprint(self) -> str:
        """Give a digest that is another one as soon as one byte of them is."""
        hasher = hashlib.sha256()
        for data in (self.certificate, self.authorities):
            hasher.update(b"-" if data is None else hashlib.sha256(data).digest())
        return hasher.hexdigest()


class Signatures:
    """Finds the certificate of an image, in a folder of the operator or in the key manager."""

    def __init__(self, parts: Parts) -> None:
        self._config = parts.config
        self._barbican = parts.barbican
        self._now = parts.now

    async def demanded(self, image: GlanceImage, caller: Caller) -> SignatureCheck | None:
        """Give what the image's signature is checked with; None where no check is asked for.

        Raises:
            ImageUnacceptableError: the signature is missing or cannot be one; its certificate is
                unknown, not valid now, or not trusted.
            GlanceUnavailableError: the certificate, or whom to trust, cannot be looked up now.

        """
        if not self._config().images.verify_signatures:
            return None
        signature = image.signature
        if signature is None:
            raise ImageUnacceptableError(
                "signature-missing",
                "the image is not signed: some of its properties img_signature… are missing",
            )
        # It becomes the name of a file, and part of a URL.
        if not re.fullmatch(UUID_PATTERN, signature.certificate):
            raise signing.uncertified("img_signature_certificate_uuid is no UUID")
        trusted = await self._trusted(signature)
        chain = await self._chain(signature, trusted, caller)
        signing.check_certificate(chain, self._authorities(trusted), self._now())
        vouched = replace(signature, vouched_by=trusted.fingerprint())
        return signing.SignatureCheck(vouched, chain[0])

    async def vouched_by(self, signature: ImageSignature) -> str | None:
        """Give the fingerprint of what the operator trusts now for this signature.

        It is another one once the authorities, or the certificate in the folder, are others. None
        where it cannot be told; ``demanded`` says why.
        """
        if not re.fullmatch(UUID_PATTERN, signature.certificate):
            return None
        try:
            return (await self._trusted(signature)).fingerprint()
        except GlanceUnavailableError:
            return None

    async def _chain(
        self, signature: ImageSignature, trusted: _Trusted, caller: Caller
    ) -> Sequence[x509.Certificate]:
        """Give the certificate, and those behind it."""
        data = trusted.certificate
        # Anybody may store a certificate: without an authority its being there proves nothing.
        may_ask = trusted.authorities is not None
        if data is None and may_ask and self._barbican is not None:
            data = await self._barbican.certificate(signature.certificate, caller)
        if data is None:
            raise signing.uncertified(f"nobody knows certificate {signature.certificate}")
        try:
            return signing.read_certificates(data)
        except ValueError:
            raise signing.uncertified("its certificate cannot be read") from None

    async def _trusted(self, signature: ImageSignature) -> _Trusted:
        images = self._config().images
        folder, ca_file = images.certificates_dir, images.signature_ca_file
        certificate = None if folder is None else folder / f"{signature.certificate}.pem"
        return await asyncio.to_thread(_look, certificate, ca_file)

    def _authorities(self, trusted: _Trusted) -> Sequence[x509.Certificate] | None:
        """Give whom the operator trusts; None where all that lies in the folder is trusted."""
        if trusted.authorities is None:
            return None
        try:
            return signing.read_certificates(trusted.authorities)
        except ValueError as error:
            path = self._config().images.signature_ca_file
            raise _unusable(path, error) from error


def _look(certificate: Path | None, ca_file: Path | None) -> _Trusted:
    """Read both files; a certificate need not be there. Raises: GlanceUnavailableError."""
    found = authorities = None
    if certificate is not None:
        try:
            found = _read(certificate)
        except FileNotFoundError:
            pass
        except OSError as error:
            why = f"images.certificates_dir: {error.filename}: {error.strerror}"
            raise GlanceUnavailableError(why) from error
    if ca_file is not None:
        try:
            authorities = _read(ca_file)
        except OSError as error:
            raise _unusable(ca_file, error) from error
    return _Trusted(found, authorities)


def _unusable(path: Path | None, error: Exception) -> GlanceUnavailableError:
    return GlanceUnavailableError(f"images.signature_ca_file: {path} cannot be used: {error}")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        # No device, and no pipe without an end.
        return file.read(min(LONGEST, os.fstat(file.fileno()).st_size))
