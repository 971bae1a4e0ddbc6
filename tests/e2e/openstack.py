"""A daemon in a real cloud, and what tests of it have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from tests.e2e.agent import Agent, agent_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.openstack.cloud import Cloud

MIB = 1 << 20


def some_data(size: int = MIB) -> bytes:
    """Give bytes that no other image has."""
    return os.urandom(size)


@contextlib.asynccontextmanager
async def agent_in(
    cloud: Cloud, glance: Mapping[str, object] | None = None, **sections: Mapping[str, object]
) -> AsyncIterator[Agent]:
    """Run a daemon as the user ``cacheagent``; ``glance`` and ``sections`` are more settings."""
    settings = {"glance": {"cloud": "cacheagent", "failure_ttl": 0, **(glance or {})}, **sections}
    environment = {"OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml)}
    async with agent_on(settings, environment) as running:
        yield running


async def token_of(cloud: Cloud, user: str) -> str:
    """Get a new token of a user."""
    return await asyncio.to_thread(cloud.token, user)


async def upload(
    cloud: Cloud, user: str, data: Path | bytes, disk_format: str = "raw", **properties: object
) -> str:
    """Make an active image, private unless said otherwise, and give its id."""
    return await asyncio.to_thread(cloud.upload, user, data, disk_format, **properties)
