"""The clouds as fixtures for every test: started when a test first asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.openstack.cloud import Cloud, running_cloud
from tests.openstack.servers import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL_TIMEOUT = 600
"""Seconds for a test that may be the one for which the servers are first installed."""


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Run Keystone and Glance as they are by default, once for all tests."""
    with running_cloud(tmp_path_factory.mktemp("cloud"), Settings()) as running:
        yield running


@pytest.fixture(scope="session")
def expiring_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Run a second pair, whose tokens die after six seconds, and Glance knows it at once."""
    settings = Settings(token_seconds=6, token_cache_seconds=-1)
    with running_cloud(tmp_path_factory.mktemp("expiring"), settings) as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a cloud, and give them time for its start."""
    for item in items:
        if {"cloud", "expiring_cloud"}.isdisjoint(getattr(item, "fixturenames", ())):
            continue
        item.add_marker(pytest.mark.openstack)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(INSTALL_TIMEOUT))
