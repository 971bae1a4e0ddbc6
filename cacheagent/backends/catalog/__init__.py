"""Which bases, disks and pins exist: SQLite, one connection in one thread."""

from cacheagent.backends.catalog.around import Around
from cacheagent.backends.catalog.catalog import Catalog
from cacheagent.backends.catalog.holds import Held
from cacheagent.backends.catalog.queries import DiskIntent

__all__ = ["Around", "Catalog", "DiskIntent", "Held"]
