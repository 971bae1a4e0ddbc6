"""The difference between the catalog and the files, and what to do about it.

The files are the truth. What the catalog has beyond them goes, what it lacks is taken in, and what
a crash left half done is ended. A doubt (a folder or a header that cannot be read, an instances
folder that may not be mounted) keeps everything that it is about. So does work that is under way.
"""

from __future__ import annotations

from cacheagent.policy.drift.disks import FinishedDisk
from cacheagent.policy.drift.plan import DriftPlan, diff, merged
from cacheagent.policy.drift.states import (
    CatalogState,
    FilesState,
    FoundBase,
    FoundDisk,
    Running,
)

__all__ = [
    "CatalogState",
    "DriftPlan",
    "FilesState",
    "FinishedDisk",
    "FoundBase",
    "FoundDisk",
    "Running",
    "diff",
    "merged",
]
