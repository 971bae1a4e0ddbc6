"""Tests of the asyncio primitives."""
