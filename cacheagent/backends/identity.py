"""Who the agent is where there is no Keystone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class NoIdentity:
    """The identity where there is no Keystone: endpoints that were configured, and no tokens."""

    def __init__(self, *endpoints: str) -> None:
        self._endpoints = endpoints

    async def endpoints(self) -> Sequence[str]:
        """Give the base URLs of the image service, in order of preference."""
        return self._endpoints

    async def key_managers(self) -> Sequence[str]:
        """Give none."""
        return ()

    async def token(self) -> str | None:
        """Give None."""
        return None

    async def renew(self, refused: str) -> str | None:  # noqa: ARG002  the same call for every identity
        """Give None: there is no other token."""
        return None
