"""What a test needs of the machine that it runs on."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest


def require(condition: object, reason: str) -> None:
    """Skip the test with ``reason`` unless ``condition`` holds.

    With ``CACHEAGENT_REQUIRE_ALL=1`` in the environment a skip is a failure; tests/conftest.py
    sees to that, so it holds for every skip and not only for these.
    """
    if not condition:
        pytest.skip(reason)


def require_programs(*names: str) -> None:
    """Skip the test unless all these programs are on the PATH; the reason names the missing."""
    missing = [name for name in names if shutil.which(name) is None]
    require(not missing, f"not on the PATH: {', '.join(missing)}")


@functools.cache
def _bubblewrap_fails_by() -> str:
    words = ("bwrap", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "true")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr


def require_bubblewrap() -> None:
    """Skip the test where bubblewrap, or a user namespace, is not to be had."""
    require_programs("bwrap")
    require(not _bubblewrap_fails_by(), f"bubblewrap: {_bubblewrap_fails_by()}")
