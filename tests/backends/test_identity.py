"""Who the agent is to a Glance that asks nobody for a token."""

from __future__ import annotations

from cacheagent.backends.identity import NoIdentity


async def test_without_keystone_there_are_endpoints_and_no_tokens() -> None:
    """Endpoints come as configured, in their order; there is nothing to renew, and no key."""
    identity = NoIdentity("http://one.test", "http://two.test")
    assert list(await identity.endpoints()) == ["http://one.test", "http://two.test"]
    assert await identity.token() is None
    assert await identity.renew("any") is None
    assert list(await identity.key_managers()) == []
