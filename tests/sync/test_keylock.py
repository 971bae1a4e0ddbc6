"""A lock per key: exclusive, fair, and gone when nobody uses it."""

from __future__ import annotations

import asyncio

import pytest

from cacheagent.sync.keylock import KeyLock


async def _settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_holder_per_key_in_order_of_arrival() -> None:
    """Those who want one key hold it one after the other, first come, first served."""
    locks: KeyLock[str] = KeyLock()
    seen: list[str] = []

    async def visit(name: str) -> None:
        async with locks.hold("key"):
            seen.append(f"{name} in")
            await asyncio.sleep(0)
            seen.append(f"{name} out")

    await asyncio.gather(visit("a"), visit("b"), visit("c"))
    assert seen == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_other_keys_do_not_wait() -> None:
    """A held key stops nobody who wants another one."""
    locks: KeyLock[str] = KeyLock()
    async with locks.hold("one"), asyncio.timeout(5), locks.hold("two"):
        assert len(locks) == 2


async def test_an_unused_key_is_forgotten() -> None:
    """A key takes memory only while it is in use, also after an error inside."""
    locks: KeyLock[str] = KeyLock()

    async def fail() -> None:
        async with locks.hold("key"):
            assert locks.held("key")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert not locks.held("key")
    assert len(locks) == 0


async def test_a_waiter_that_is_cancelled_leaves_the_queue() -> None:
    """A cancelled waiter never gets the lock, and the next one does."""
    locks: KeyLock[str] = KeyLock()
    seen: list[str] = []

    async def visit(name: str) -> None:
        async with locks.hold("key"):
            seen.append(name)

    async with locks.hold("key"):
        first = asyncio.create_task(visit("first"))
        second = asyncio.create_task(visit("second"))
        await _settle()
        first.cancel()
        await _settle()
    await second
    assert seen == ["second"]
    assert first.cancelled()
    assert not locks.held("key")


async def test_a_key_is_held_while_it_changes_hands() -> None:
    """Between one holder and the next, the key never looks free."""
    locks: KeyLock[str] = KeyLock()
    async with locks.hold("key"):
        waiter = asyncio.create_task(_hold_once(locks))
        await _settle()
    assert locks.held("key")
    await waiter
    assert not locks.held("key")


async def _hold_once(locks: KeyLock[str]) -> None:
    async with locks.hold("key"):
        pass
