"""Keys, certificates and signatures over images, as an owner of images would make them."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    Key = rsa.RSAPrivateKey | dsa.DSAPrivateKey | ec.EllipticCurvePrivateKey

KEY_TYPES = ("RSA-PSS", "DSA", "ECC_SECP384R1", "ECC_SECP521R1")
HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA-224": hashes.SHA224(),
    "SHA-256": hashes.SHA256(),
    "SHA-384": hashes.SHA384(),
    "SHA-512": hashes.SHA512(),
}
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""When certificates of tests begin to count; they do for ten years unless said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Somebody with a key and a certificate, who may sign images, or certificates of others."""

    key_type: str
    key: Key
    certificate: x509.Certificate
    certificate_id: str

    @property
    def pem(self) -> bytes:
        """The certificate as text."""
        return self.certificate.public_bytes(Encoding.PEM)

    def put_into(self, folder: Path) -> None:
        """Write the certificate where an operator puts those that are trusted."""
        (folder / f"{self.certificate_id}.pem").write_bytes(self.pem)

    def sign(self, data: bytes, method: str = "SHA-256") -> dict[str, str]:
        """Give the properties of an image that is signed so."""
        return {
            "img_signature": base64.b64encode(_sign(self.key, data, HASHES[method])).decode(),
            "img_signature_hash_method": method,
            "img_signature_key_type": self.key_type,
            "img_signature_certificate_uuid": self.certificate_id,
        }


@cache
def key_of(key_type: str, number: int = 0, bits: int = 2048) -> Key:
    """Give a key of the type, the same one each time for the same number: making one is slow."""
    assert number >= 0
    match key_type:
        case "RSA-PSS":
            return rsa.generate_private_key(65537, bits)
        case "DSA":
            return dsa.generate_private_key(bits)
        case "ECC_SECP521R1":
            return ec.generate_private_key(ec.SECP521R1())
        case "ECC_SECP256R1":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ec.generate_private_key(ec.SECP384R1())


def signer(  # noqa: PLR0913 - one argument for each thing that a certificate says
    key_type: str = "ECC_SECP384R1",
    *,
    issuer: Signer | None = None,
    name: str = "a signer",
    authority: bool = False,
    number: int = 0,
    bits: int = 2048,
    lasts: timedelta = timedelta(days=3650),
    purposes: Collection[str] = (),
) -> Signer:
    """Make a certificate, signed by ``issuer`` or by itself; ``purposes`` are its key usages."""
    key = key_of(key_type, number, bits)
    subject = _name(name)
    issued_by = subject if issuer is None else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder(issued_by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(EPOCH)
        .not_valid_after(EPOCH + lasts)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if purposes:
        builder = builder.add_extension(_usage(purposes), critical=True)
    certificate = builder.sign((issuer.key if issuer else key), hashes.SHA256())
    return Signer(
        key_type=key_type, key=key, certificate=certificate, certificate_id=str(uuid.uuid4())
    )


def authority(name: str = "an authority", number: int = 100) -> Signer:
    """Make a root that an operator may trust."""
    return signer(name=name, authority=True, number=number)


def _usage(purposes: Collection[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in purposes,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign="key_cert_sign" in purposes,
        crl_sign="crl_sign" in purposes,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _sign(key: Key, data: bytes, method: hashes.HashAlgorithm) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(method), padding.PSS.MAX_LENGTH)
        return key.sign(data, pss, method)
    if isinstance(key, dsa.DSAPrivateKey):
        return key.sign(data, method)
    return key.sign(data, ec.ECDSA(method))
