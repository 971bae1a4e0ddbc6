"""Who is at the other end, as the kernel tells it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest

from cacheagent.api import peer


class Connection(asyncio.BaseTransport):
    """A connection over a socket of this family, whose peer is the user ``uid``."""

    def __init__(self, family: socket.AddressFamily, uid: int) -> None:
        """Take what the kernel would tell."""
        super().__init__({"socket": self})
        self.family = family
        self._uid = uid

    def getsockopt(self, *_: int) -> bytes:
        """Give a ``struct ucred``."""
        return struct.pack("3i", 1, self._uid, self._uid)


@pytest.mark.parametrize(
    ("family", "uid", "is_one"),
    [
        (socket.AF_UNIX, 0, True),
        (socket.AF_UNIX, 2000, True),
        (socket.AF_UNIX, 2001, False),
        (socket.AF_INET, 0, False),
    ],
)
def test_an_operator_is_root_or_the_daemons_user_on_the_unix_socket(
    monkeypatch: pytest.MonkeyPatch,
    family: socket.AddressFamily,
    uid: int,
    is_one: bool,  # noqa: FBT001  a value of the table
) -> None:
    """Nobody else of the socket's group is, nor anybody over TCP, nor one that has gone."""
    monkeypatch.setattr(os, "geteuid", lambda: 2000)
    assert peer.is_operator(Connection(family, uid)) is is_one
    assert not peer.is_operator(None)
