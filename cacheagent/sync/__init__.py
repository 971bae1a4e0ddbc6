"""Primitives of asyncio without a word of the domain."""
