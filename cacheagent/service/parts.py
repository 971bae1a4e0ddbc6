"""What every service works with, handed around as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cacheagent.backends.barbican import Barbican
from cacheagent.backends.catalog import Catalog
from cacheagent.backends.glance import Glance
from cacheagent.backends.inspect import INSPECTION_VERSION
from cacheagent.backends.qemuimg import QemuImg
from cacheagent.backends.store import Store
from cacheagent.config import Config
from cacheagent.metrics import Metrics
from cacheagent.policy.admission import BaseFormat, ImageRules
from cacheagent.policy.eviction import EvictionPolicy
from cacheagent.policy.quarantine import QuarantineBounds
from cacheagent.policy.trust import TrustRules
from cacheagent.service.background import Background
from cacheagent.service.events import Events
from cacheagent.service.room import Room
from cacheagent.sync.precedence import Precedence


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The backends of one agent, and what its services share.

    ``config()`` gives the configuration as it is now, since it can be reloaded; ``clock()``
    gives monotonic seconds, ``now()`` the time in UTC. ``room`` is that of the bases,
    ``disk_room`` that of the disks: the same one where both lie on one file system. ``barbican``
    is None without Keystone. ``inspection_version`` is that of the rules which look at images now.
    A request has ``precedence`` over downloads.
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
    now: Callable[[], datetime]
    events: Events
    barbican: Barbican | None = None
    inspection_version: int = INSPECTION_VERSION
    precedence: Precedence = field(default_factory=Precedence)

    def bounds(self) -> EvictionPolicy:
        """Give the bounds of the cache as the operator has set them now."""
        return bounds(self.config())

    def quarantine_bounds(self) -> QuarantineBounds:
        """Give the bounds of the quarantine as the operator has set them now."""
        quarantine = self.config().quarantine
        return QuarantineBounds(max_size=quarantine.max_size, max_age=quarantine.max_age)

    def rules(self) -> ImageRules:
        """Give the bounds for images as the operator has set them now."""
        images = self.config().images
        return ImageRules(
            base_format=BaseFormat(images.base_format),
            allowed_formats=frozenset(images.allowed_formats),
            max_size=images.max_size,
            max_virtual_size=images.max_virtual_size,
        )

    def trust(self) -> TrustRules:
        """Give what has to be proved of a base before anybody gets it."""
        return TrustRules(
            inspection_version=self.inspection_version,
            verify_signatures=self.config().images.verify_signatures,
        )


def bounds(config: Config) -> EvictionPolicy:
    """Give the bounds of the cache that a configuration sets."""
    eviction = config.eviction
    return EvictionPolicy(
        max_size=eviction.max_size,
        high_watermark=eviction.high_watermark,
        low_watermark=eviction.low_watermark,
        min_free=eviction.min_free,
        min_keep=eviction.min_keep,
        min_age=eviction.min_age,
        max_idle=eviction.max_idle,
    )
