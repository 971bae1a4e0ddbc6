"""What every test gets: a loop that must not be blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_blocking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose event loop thread makes a blocking call in cacheagent's code."""
    if request.node.get_closest_marker("allow_blocking"):
        yield
        return
    with blockbuster_ctx("cacheagent"):
        yield
