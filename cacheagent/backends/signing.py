"""Signatures over images: whose key made them, whether it may, and whether they hold.

Key types, hash methods and encodings are those of Glance's properties ``img_signature…``, as the
library ``cursive`` has them, by which Glance and Nova check. What signs is the key of a
certificate; who may sign is said by the certificates that the operator trusts.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa, utils
from cryptography.x509 import verification

from cacheagent.errors import ImageUnacceptableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from cacheagent.model import ImageSignature

    PublicKey = rsa.RSAPublicKey | dsa.DSAPublicKey | ec.EllipticCurvePublicKey

HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "SHA-224": hashes.SHA224(),
    "SHA-256": hashes.SHA256(),
    "SHA-384": hashes.SHA384(),
    "SHA-512": hashes.SHA512(),
}

CURVES: Final[Mapping[str, str]] = {
    f"ECC_{name.upper()}": name
    for name in ("secp384r1", "secp521r1", "sect409k1", "sect409r1", "sect571k1", "sect571r1")
}
"""Key types of elliptic curves, with the curve; ``sect…`` are known where OpenSSL has them."""

LEAST_BITS: Final = 2048
"""Shorter keys of RSA and DSA can be broken (NIST SP 800-131A)."""


class SignatureCheck:
    """One signature, and the key that it has to be made with.

    ``algorithm`` is the name, as hashlib knows it, of the digest that was signed.
    """

    def __init__(self, signature: ImageSignature, certificate: x509.Certificate) -> None:
        """Take a signature, and the certificate that it names.

        Raises:
            ImageUnacceptableError: ``signature-invalid`` for properties that cannot be a
                signature, ``signature-certificate`` for a key of another kind.

        """
        if signature.hash_method not in HASHES:
            raise _invalid(f"img_signature_hash_method {signature.hash_method!r} is not known here")
        self.signature = signature
        self._hash = HASHES[signature.hash_method]
        self.algorithm = self._hash.name
        self._value = _decoded(signature.value)
        self._key = _key_of(certificate, signature.key_type)

    def verify(self, digest: bytes) -> None:
        """Compare the signature with the digest of all data.

        Raises:
            ImageUnacceptableError: ``signature-invalid``.

        """
        hashed = utils.Prehashed(self._hash)
        try:
            match self._key:
                case rsa.RSAPublicKey():
                    # Signers differ in the length of the salt; none of them is weaker.
                    pss = padding.PSS(padding.MGF1(self._hash), padding.PSS.AUTO)
                    self._key.verify(self._value, digest, pss, hashed)
                case dsa.DSAPublicKey():
                    self._key.verify(self._value, digest, hashed)
                case ec.EllipticCurvePublicKey():
                    self._key.verify(self._value, digest, ec.ECDSA(hashed))
        except InvalidSignature:
            raise _invalid("its signature does not hold for its data") from None


def read_certificates(data: bytes) -> Sequence[x509.Certificate]:
    """Read certificates in PEM, or one in DER: the first is meant, others may stand behind it.

    Raises:
        ValueError: there is none.

    """
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except x509.InvalidVersion as error:
        # Not a ValueError, and a key manager stores whatever it is given.
        raise ValueError(str(error)) from error


def check_certificate(
    chain: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate] | None,
    now: datetime,
) -> None:
    """Return if the first certificate is valid now and, unless ``trusted`` is None, trusted.

    It is trusted if a chain of valid authorities leads from it to one of ``trusted``.

    Raises:
        ImageUnacceptableError: ``signature-certificate``.

    """
    leaf, *others = chain
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise uncertified("the certificate that signed it is not valid now")
    if trusted is None:
        return
    # The rules of the web for names and purposes are not meant: these certificates sign images.
    anything = verification.ExtensionPolicy.permit_all()
    authority = anything.require_present(
        x509.BasicConstraints, verification.Criticality.AGNOSTIC, _check_authority
    ).may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _check_purpose)
    try:
        policy = verification.PolicyBuilder().store(verification.Store(list(trusted))).time(now)
        policy = policy.extension_policies(ca_policy=authority, ee_policy=anything)
        policy.build_client_verifier().verify(leaf, others)
    except (verification.VerificationError, ValueError, UnsupportedAlgorithm):
        raise uncertified(
            "nobody whom images.signature_ca_file trusts stands for the certificate that signed it"
        ) from None


def uncertified(message: str) -> ImageUnacceptableError:
    """Give the refusal of an image whose certificate cannot be had, or is not trusted."""
    return ImageUnacceptableError("signature-certificate", f"the image is refused: {message}")


def _invalid(message: str) -> ImageUnacceptableError:
    return ImageUnacceptableError("signature-invalid", f"the image is refused: {message}")


def _check_authority(
    _policy: verification.Policy, _certificate: x509.Certificate, limits: x509.BasicConstraints
) -> None:
    if not limits.ca:
        raise ValueError("it is no authority")


def _check_purpose(
    _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    # Where it is said what the key is for (RFC 5280, 4.2.1.3).
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its key is not for certificates")


def _decoded(value: str) -> bytes:
    with suppress(binascii.Error, ValueError):
        # Command lines break base64 into lines.
        return base64.b64decode("".join(value.split()), validate=True)
    raise _invalid("img_signature is not base64")


def _key_of(certificate: x509.Certificate, key_type: str) -> PublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise uncertified("the key of its certificate cannot be used") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and CURVES.get(key_type) == key.curve.name:
        return key
    is_rsa = key_type == "RSA-PSS" and isinstance(key, rsa.RSAPublicKey)
    is_dsa = key_type == "DSA" and isinstance(key, dsa.DSAPublicKey)
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and (is_rsa or is_dsa):
        if key.key_size < LEAST_BITS:
            raise uncertified(f"its key has {key.key_size} bits; {LEAST_BITS} are needed")
        return key
    raise uncertified(f"its certificate has no key of the type {key_type!r}")
