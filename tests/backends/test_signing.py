"""Signatures over images: of every kind that Glance knows, and those that count for nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cacheagent.backends import signing
from cacheagent.backends.signing import SignatureCheck, check_certificate, read_certificates
from cacheagent.errors import ImageUnacceptableError
from cacheagent.model import ImageSignature
from tests.fakes.signatures import EPOCH, HASHES, KEY_TYPES, Signer, authority, signer

DATA = os.urandom(100_000)
NOW = EPOCH + timedelta(days=30)
PEM_END = b"\n-----END CERTIFICATE-----\n"


def described(properties: dict[str, str]) -> ImageSignature:
    """Give the signature that properties of Glance tell of."""
    return ImageSignature(
        value=properties["img_signature"],
        hash_method=properties["img_signature_hash_method"],
        key_type=properties["img_signature_key_type"],
        certificate=properties["img_signature_certificate_uuid"],
    )


def check(owner: Signer, **changed: str) -> None:
    """Check a signature over ``DATA``, with some of its properties changed."""
    signed = SignatureCheck(described(owner.sign(DATA) | changed), owner.certificate)
    signed.verify(hashlib.new(signed.algorithm, DATA).digest())


def refused(reason: str) -> pytest.RaisesExc[ImageUnacceptableError]:
    """Expect a refusal of this reason."""
    return pytest.RaisesExc(ImageUnacceptableError, check=lambda error: error.reason == reason)


@pytest.mark.parametrize("method", HASHES)
@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_every_kind_of_signature_is_checked(key_type: str, method: str) -> None:
    """Each type of key with each hash holds for the data that was signed, and for no other."""
    owner = signer(key_type)
    signed = SignatureCheck(described(owner.sign(DATA, method)), owner.certificate)
    assert signed.algorithm == method.replace("-", "").lower()
    signed.verify(hashlib.new(signed.algorithm, DATA).digest())
    other = bytes([DATA[0] ^ 1]) + DATA[1:]
    with refused("signature-invalid"):
        signed.verify(hashlib.new(signed.algorithm, other).digest())


def test_base64_may_have_lines() -> None:
    """What a command line has broken into lines is the same signature."""
    owner = signer()
    value = owner.sign(DATA)["img_signature"]
    check(owner, img_signature=f"{value[:20]}\n{value[20:]}\n")


@pytest.mark.parametrize(
    "changed",
    [
        {"img_signature": "%%%"},
        {"img_signature": "AAAA"},
        {"img_signature_hash_method": "MD5"},
        {"img_signature_hash_method": "SHA-1"},
    ],
)
def test_what_is_no_signature_is_refused(changed: dict[str, str]) -> None:
    """Broken base64, a signature of nothing, and hashes that prove nothing are refused."""
    with refused("signature-invalid"):
        check(signer(), **changed)


@pytest.mark.parametrize("key_type", ["DSA", "ECC_SECP521R1", "RSA-PSS", "ECC_SECP256R1", ""])
def test_key_is_of_the_type_that_is_said(key_type: str) -> None:
    """A key of another kind, or of another curve, than the properties say is refused."""
    with refused("signature-certificate"):
        check(signer("ECC_SECP384R1"), img_signature_key_type=key_type)


@pytest.mark.parametrize("key_type", ["RSA-PSS", "DSA"])
def test_a_short_key_counts_for_nothing(key_type: str) -> None:
    """A key of 1024 bits can be broken, so whatever it signs is refused."""
    with refused("signature-certificate"):
        check(signer(key_type, bits=1024))


def test_certificate_leads_to_an_authority() -> None:
    """One that an authority stands for is trusted, over others that come with it as well."""
    root = authority()
    middle = signer(issuer=root, name="in between", authority=True, number=1)
    direct, remote = signer(issuer=root), signer(issuer=middle)
    check_certificate([direct.certificate], [root.certificate], NOW)
    check_certificate([remote.certificate, middle.certificate], [root.certificate], NOW)
    with refused("signature-certificate"):
        check_certificate([remote.certificate], [root.certificate], NOW)


def test_nobody_stands_for_a_stranger() -> None:
    """Another authority, even of the same name, and one that is none, are worth nothing."""
    root, namesake = authority(), authority(number=101)
    ordinary = signer(issuer=root, name="no authority", number=1)
    with refused("signature-certificate"):
        check_certificate([signer(issuer=namesake).certificate], [root.certificate], NOW)
    with refused("signature-certificate"):
        check_certificate([signer().certificate], [root.certificate], NOW)
    by_ordinary = signer(issuer=ordinary)
    with refused("signature-certificate"):
        check_certificate([by_ordinary.certificate, ordinary.certificate], [root.certificate], NOW)


def test_authority_is_for_certificates() -> None:
    """One whose key is for other ends, as it says itself, stands for nobody, nor behind another."""
    root, other = authority(), signer(name="root", authority=True, purposes=("crl_sign",))
    middle = signer(issuer=root, name="middle", authority=True, number=1, purposes=("crl_sign",))
    with refused("signature-certificate"):
        check_certificate([signer(issuer=other).certificate], [other.certificate], NOW)
    with refused("signature-certificate"):
        chain = [signer(issuer=middle).certificate, middle.certificate]
        check_certificate(chain, [root.certificate], NOW)
    good = signer(name="root", authority=True, purposes=("key_cert_sign",))
    check_certificate([signer(issuer=good).certificate], [good.certificate], NOW)


@pytest.mark.parametrize("trusts", [True, False])
def test_certificate_counts_in_its_time(*, trusts: bool) -> None:
    """Before and after its time a certificate counts for nothing, whoever stands for it."""
    root = authority()
    owner = signer(issuer=root, lasts=timedelta(days=1))
    trusted = [root.certificate] if trusts else None
    check_certificate([owner.certificate], trusted, EPOCH + timedelta(hours=1))
    for when in (EPOCH - timedelta(seconds=1), EPOCH + timedelta(days=2)):
        with refused("signature-certificate"):
            check_certificate([owner.certificate], trusted, when)


def test_authority_counts_in_its_time() -> None:
    """An authority whose time is over stands for nobody."""
    root = signer(authority=True, lasts=timedelta(days=1), name="root")
    owner = signer(issuer=root)
    with refused("signature-certificate"):
        check_certificate([owner.certificate], [root.certificate], NOW)


def test_certificates_are_read_in_both_forms() -> None:
    """PEM with several of them, DER with one; anything else is an error."""
    one, two = signer(), authority()
    assert list(read_certificates(one.pem + two.pem)) == [one.certificate, two.certificate]
    der = one.certificate.public_bytes(Encoding.DER)
    assert list(read_certificates(der)) == [one.certificate]
    for junk in (b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ValueError, match=r"."):
            read_certificates(junk)


def test_certificate_of_no_known_version_cannot_be_read() -> None:
    """Whatever somebody has stored as a certificate is an error that is told, and no other."""
    der = signer().certificate.public_bytes(Encoding.DER)
    version = b"\xa0\x03\x02\x01"
    odd = der.replace(version + b"\x02", version + b"\x11", 1)
    assert odd != der
    for data in (odd, b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(odd) + PEM_END):
        with pytest.raises(ValueError, match="version"):
            read_certificates(data)


def test_words_of_a_refusal_name_the_rule() -> None:
    """A refusal for a certificate has the reason by which programs know it."""
    assert signing.uncertified("why").reason == "signature-certificate"
