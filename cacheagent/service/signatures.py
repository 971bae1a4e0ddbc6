"""Before an image is read: what its signature has to be checked with, if it has to be checked."""

from __future__ import annotations

import asyncio
import os
import re
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
        if image.signature is None:
            raise ImageUnacceptableError(
                "signature-missing",
                "the image is not signed: some of its properties img_signature… are missing",
            )
        chain = await self._chain(image.signature, caller)
        signing.check_certificate(chain, await self._trusted(), self._now())
        return signing.SignatureCheck(image.signature, chain[0])

    async def _chain(self, signature: ImageSignature, caller: Caller) -> Sequence[x509.Certificate]:
        """Give the certificate, and those behind it."""
        # It becomes the name of a file, and part of a URL.
        if not re.fullmatch(UUID_PATTERN, signature.certificate):
            raise signing.uncertified("img_signature_certificate_uuid is no UUID")
        data = await self._from_folder(signature.certificate)
        if data is None and self._may_ask() and self._barbican is not None:
            data = await self._barbican.certificate(signature.certificate, caller)
        if data is None:
            raise signing.uncertified(f"nobody knows certificate {signature.certificate}")
        try:
            return signing.read_certificates(data)
        except ValueError:
            raise signing.uncertified("its certificate cannot be read") from None

    def _may_ask(self) -> bool:
        # Anybody may store a certificate: without an authority its being there proves nothing.
        return self._config().images.signature_ca_file is not None

    async def _from_folder(self, certificate: str) -> bytes | None:
        folder = self._config().images.certificates_dir
        if folder is None:
            return None
        try:
            return await asyncio.to_thread(_read, folder / f"{certificate}.pem")
        except FileNotFoundError:
            return None
        except OSError as error:
            why = f"images.certificates_dir: {error.filename}: {error.strerror}"
            raise GlanceUnavailableError(why) from error

    async def _trusted(self) -> Sequence[x509.Certificate] | None:
        """Give whom the operator trusts; None where all that lies in the folder is trusted."""
        path = self._config().images.signature_ca_file
        if path is None:
            return None
        try:
            return signing.read_certificates(await asyncio.to_thread(_read, path))
        except (OSError, ValueError) as error:
            why = f"images.signature_ca_file: {path} cannot be used: {error}"
            raise GlanceUnavailableError(why) from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        # No device, and no pipe without an end.
        return file.read(min(LONGEST, os.fstat(file.fileno()).st_size))
