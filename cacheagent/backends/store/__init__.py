"""The bytes on disk; see ``store.py``."""

from cacheagent.backends.store.disks import Clone
from cacheagent.backends.store.manifest import Manifest
from cacheagent.backends.store.part import BLOCK_SIZE, Block, Part
from cacheagent.backends.store.store import Store
from cacheagent.backends.store.templates import Template

__all__ = ["BLOCK_SIZE", "Block", "Clone", "Manifest", "Part", "Store", "Template"]
