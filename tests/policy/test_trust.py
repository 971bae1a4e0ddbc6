"""What a base lacks before a request may have it, as a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cacheagent.model import BaseState, ImageSignature
from cacheagent.policy.trust import (
    Lack,
    TrustRules,
    lacks,
    next_outdated,
    sentence,
    with_signatures,
)
from tests.fakes.values import NOW, base, glance_image

SIGNED = ImageSignature(value="YQ==", hash_method="SHA-256", key_type="DSA", certificate="a")
OTHER = replace(SIGNED, value="Yg==")
LENIENT = TrustRules(inspection_version=3, verify_signatures=False)
STRICT = replace(LENIENT, verify_signatures=True)
INSPECTION, SIGNATURE = Lack.INSPECTION, Lack.SIGNATURE


@pytest.mark.parametrize(
    ("version", "checked", "signature", "rules", "lacking"),
    [
        (3, (), None, LENIENT, set()),
        (2, (), None, LENIENT, {INSPECTION}),
        # One that a newer version has let in, before somebody went back.
        (4, (), None, LENIENT, set()),
        (3, (), SIGNED, LENIENT, set()),
        (3, (SIGNED,), SIGNED, STRICT, set()),
        (3, (OTHER, SIGNED), SIGNED, STRICT, set()),
        (3, (), SIGNED, STRICT, {SIGNATURE}),
        (3, (OTHER,), SIGNED, STRICT, {SIGNATURE}),
        # What was checked for a signature does not help an image that has none.
        (3, (SIGNED,), None, STRICT, {SIGNATURE}),
        (2, (), None, STRICT, {INSPECTION, SIGNATURE}),
        (2, (SIGNED,), SIGNED, STRICT, {INSPECTION}),
    ],
)
def test_what_lacks(
    version: int,
    checked: tuple[ImageSignature, ...],
    signature: ImageSignature | None,
    rules: TrustRules,
    lacking: set[Lack],
) -> None:
    """A base has what was proved of it, and a request needs what the rules of now ask for."""
    proved = tuple(replace(each, vouched_by="an authority") for each in checked)
    here = replace(base(1), inspection_version=version, signatures=proved)
    image = replace(glance_image(1), signature=signature)
    found = lacks(here, image, rules, "an authority")
    assert found == lacking
    assert bool(sentence(found)) == bool(lacking)


@pytest.mark.parametrize("now", [None, "", "another one"])
def test_what_another_authority_vouched_for_lacks(now: str | None) -> None:
    """A signature holds by the word of those who are trusted now, and of nobody else."""
    proved = replace(SIGNED, vouched_by="an authority")
    here = replace(base(1), inspection_version=3, signatures=(proved,))
    image = replace(glance_image(1), signature=SIGNED)
    assert lacks(here, image, STRICT, now) == {SIGNATURE}


def test_a_signature_that_is_checked_again_is_known_once() -> None:
    """However often those change who are trusted, what is known does not grow."""
    old, new = (replace(SIGNED, vouched_by=each) for each in ("an authority", "another one"))
    assert with_signatures((OTHER, old), (new,)) == (OTHER, new)
    assert with_signatures((OTHER, old), ()) == (OTHER, old)


def test_the_base_used_last_is_inspected_first() -> None:
    """The one that is asked for soonest, probably; what is not READY is left alone."""
    old, newest = base(1), base(2, last_used_at=NOW + timedelta(hours=1))
    damaged = base(3, last_used_at=NOW + timedelta(hours=2), state=BaseState.QUARANTINED)
    current = replace(base(4, last_used_at=NOW + timedelta(hours=3)), inspection_version=3)
    assert next_outdated([old, newest, damaged, current], LENIENT) == newest
    assert next_outdated([damaged, current], LENIENT) is None
