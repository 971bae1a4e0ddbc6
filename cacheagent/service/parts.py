"""What every service works with, handed around as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cacheagent.backends.catalog import Catalog
from cacheagent.backends.glance import Glance
from cacheagent.backends.qemuimg import QemuImg
from cacheagent.backends.store import Store
from cacheagent.config import Config
from cacheagent.metrics import Metrics
from cacheagent.policy.admission import BaseFormat, ImageRules
from cacheagent.service.background import Background
from cacheagent.service.room import Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The backends of one agent, and what its services share.

    ``config()`` gives the configuration as it is now, since it can be reloaded; ``clock()``
    gives monotonic seconds. ``room`` is that of the bases, ``disk_room`` that of the disks: the
    same one where both lie on one file system.
    """

    catalog: Catalog
    store: Store
    glance: Glance
    qemu: QemuImg
    room: Room
    disk_room: Room
    background: Background
    metrics: Metrics
    config: Callable[[], Config]
    clock: Callable[[], float]

    def rules(self) -> ImageRules:
        """Give the bounds for images as the operator has set them now."""
        images = self.config().images
        return ImageRules(
            base_format=BaseFormat(images.base_format),
            allowed_formats=frozenset(images.allowed_formats),
            max_size=images.max_size,
            max_virtual_size=images.max_virtual_size,
        )
