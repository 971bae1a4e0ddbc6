"""Which bases, disks and pins exist: SQLite, one connection, by one thread at a time."""

from cacheagent.backends.catalog.around import Around
from cacheagent.backends.catalog.catalog import Catalog
from cacheagent.backends.catalog.claims import Claim, Fit
from cacheagent.backends.catalog.holds import Held
from cacheagent.backends.catalog.queries import DiskIntent

__all__ = ["Around", "Catalog", "Claim", "DiskIntent", "Fit", "Held"]
