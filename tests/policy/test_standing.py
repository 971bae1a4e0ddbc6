"""What an answer of Glance says about an image that is cached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheagent.model import GlanceImage, Standing
from cacheagent.policy.standing import judge, judge_absent
from tests.fakes.values import glance_image

KNOWN = replace(glance_image(1), checksum="0" * 32)


def test_what_did_not_change_is_active() -> None:
    """A name, an owner or a visibility may change: the content is the same."""
    said = replace(KNOWN, name="renamed", owner="other", visibility="public", min_disk=3)
    assert judge(KNOWN, said) is Standing.ACTIVE


@pytest.mark.parametrize("status", ["deactivated", "killed", "deleted", "pending_delete", "queued"])
def test_what_is_not_active_is_handed_to_nobody(status: str) -> None:
    """Glance has one word for an image that may be used."""
    assert judge(KNOWN, replace(KNOWN, status=status)) is Standing.DEACTIVATED


@pytest.mark.parametrize(
    "said",
    [
        replace(KNOWN, os_hash_value="f" * 128),
        replace(KNOWN, checksum="f" * 32),
        replace(KNOWN, size=1001),
    ],
)
def test_other_content_under_the_id_is_another_image(said: GlanceImage) -> None:
    """An id that was purged can come back with other bytes (OSSN-0075)."""
    assert judge(KNOWN, said) is Standing.CHANGED


def test_facts_that_one_side_does_not_know_are_not_compared() -> None:
    """An old image without a digest is not another one because it has got one."""
    old = replace(KNOWN, os_hash_algo=None, os_hash_value=None)
    assert judge(old, KNOWN) is Standing.ACTIVE
    assert judge(KNOWN, old) is Standing.ACTIVE


@pytest.mark.parametrize(
    ("visibility", "was_seen", "standing"),
    [
        ("public", False, Standing.GONE),
        ("community", False, Standing.GONE),
        ("private", True, Standing.GONE),
        ("private", False, None),
        ("shared", False, None),
    ],
)
def test_an_image_that_is_not_shown_may_be_a_tenants(
    visibility: str, standing: Standing | None, *, was_seen: bool
) -> None:
    """That an image has gone is known only of one that the agent could see before."""
    known = replace(KNOWN, visibility=visibility)
    assert judge_absent(known, was_seen=was_seen) is standing
