"""What every test gets: a loop that must not be blocked, and no skip where none is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from tests.fakes.lying_glance import LyingGlance
from tests.needs import require_programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

# Where stevedore notes the plugins that it found: else it does so in the home of who runs this,
# and reads the place when it is imported.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".cache")

pytest_plugins = ["tests.openstack.fixtures"]


@pytest.fixture(autouse=True)
def _no_blocking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose event loop thread makes a blocking call in cacheagent's code."""
    if request.node.get_closest_marker("allow_blocking"):
        yield
        return
    with blockbuster_ctx("cacheagent") as watch:
        # Coverage's own lock, which it takes in any thread when a file runs for the first time.
        watch.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
        yield


@pytest.fixture
def qemu_img() -> None:
    """Skip a test on a machine that cannot make disks."""
    require_programs("qemu-img")


@pytest.fixture
async def glance() -> AsyncIterator[LyingGlance]:
    """Run an image service that lies when it is told to."""
    async with LyingGlance() as service:
        yield service


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that was skipped, where ``CACHEAGENT_REQUIRE_ALL=1`` says that none may be."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _all_required():
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a whole module that skips itself."""
    report = yield
    if report.skipped and _all_required():
        _fail(report)
    return report


def _all_required() -> bool:
    return os.environ.get("CACHEAGENT_REQUIRE_ALL") == "1"


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    report.outcome = "failed"
    report.longrepr = f"CACHEAGENT_REQUIRE_ALL=1 allows no skip: {report.longreprtext}"
