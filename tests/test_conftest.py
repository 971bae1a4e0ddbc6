"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path


def test_caches_stay_in_the_clone() -> None:
    """A run of the tests, and every daemon in it, notes nothing in the home of who runs them."""
    cache = Path(os.environ["XDG_CACHE_HOME"])
    assert cache.is_relative_to(Path(__file__).parent.parent)
