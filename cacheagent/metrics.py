"""Every metric of cacheagent, on a registry of its own.

An attribute of ``Metrics`` is named as the metric, without the prefix: ``requests_total`` is
``cacheagent_requests_total``. Gauges are set by whoever knows the value. The values that a label
can have stand here as constants; each is there from the start at 0, so that a rate has a first
point.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

import cacheagent
from cacheagent.model import DiskMode, ImageState, SandboxKind, UserKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    Labels = Sequence[str] | Mapping[str, Sequence[str]]

M = TypeVar("M", Counter, Gauge, Histogram)

PREFIX = "cacheagent_"

OPERATIONS = (
    *("disk_create", "disk_show", "disk_list", "disk_delete"),
    *("disk_resize", "disk_flatten", "disk_snapshot"),
    *("instance_list", "instance_show", "instance_delete"),
    *("image_list", "image_show", "image_prefetch", "image_evict"),
    *("image_pin", "image_unpin", "image_verify", "image_why"),
    *("prune", "status", "events"),
)
RESULTS = ("hit", "miss", "joined", "rejected", "error")
"""``rejected`` is an answer below 500, ``error`` one from 500; success is a ``hit`` where no base
was waited for."""

FETCHING_OPERATIONS = ("disk_create", "image_prefetch")
"""Operations that can be a ``miss`` or ``joined``."""

DISK_MODES = tuple(DiskMode)
IMAGE_STATES = tuple(ImageState)
DOWNLOAD_SOURCES = ("glance", "mirror")
DOWNLOAD_FAILURES = (
    *("glance-unavailable", "glance-refused", "digest-mismatch", "image-unacceptable"),
    *("image-forbidden", "image-not-found", "image-not-active", "insufficient-space"),
    *("unauthenticated", "host-unavailable", "shutting-down", "cancelled", "internal"),
)
"""The word of the problem that ended the download, or ``cancelled``: its last waiter left."""

CACHE_BYTES = ("allocated", "virtual", "apparent")
WATERMARKS = ("high", "low")
PRUNE_TRIGGERS = ("interval", "room", "full", "deletion", "operator")
PRUNE_RESULTS = ("done", "unmet", "failed")
EVICTION_REASONS = (
    *("max_size", "high_watermark", "min_free", "room", "max_idle", "image_gone", "damaged"),
    "operator",
)
SKIP_REASONS = (*UserKind, "min_age", "min_keep", "never_fits")
DRIFT_KINDS = (
    *("base_unlisted", "base_missing", "disk_unlisted", "disk_missing"),
    *("ingest_stale", "state_stale", "unknown_file", "doubt"),
)
DROP_REASONS = ("full", "handshake", "unread")
"""Too many of them, a TLS handshake that failed or took too long, an answer that nobody read."""

REINSPECTION_RESULTS = ("passed", "refused", "failed")
ACCESS_RESULTS = ("allowed", "denied", "remembered", "error")
GLANCE_CALLS = ("versions", "list", "show", "data", "access")
_STATUSES = (
    *(200, 204, 206, 300, 301, 302, 400, 401, 403, 404, 405, 409, 410, 413, 416, 429),
    *(500, 501, 502, 503, 504),
)
GLANCE_STATUSES = (*map(str, _STATUSES), "other", "none")
"""HTTP statuses; ``other`` for one not listed, ``none`` where no answer came."""

GUEST_STATES = ("reachable", "unreachable")

_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
_DISK_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 120)
_DOWNLOAD_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_PRUNE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)


def glance_status(status: int | None) -> str:
    """Give the value of the label ``status`` for an HTTP status, or for no answer at all."""
    if status is None:
        return "none"
    return str(status) if status in _STATUSES else "other"


class Metrics:
    """The metrics of one agent; two agents in a process have one each."""

    content_type = CONTENT_TYPE_LATEST
    """The media type of what ``render`` gives."""

    def __init__(self) -> None:
        # The time at which a series was made helps nobody here, and doubles the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotation
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._add_requests()
        self._add_downloads()
        self._add_contents()
        self._add_space()
        self._add_eviction()
        self._add_checks()
        self._add_surroundings()
        self.identify(qemu_img="unknown")
        self.config_reload_success.set(1)

    def render(self) -> bytes:
        """Write all metrics as Prometheus text. It reads /proc: call it off the event loop."""
        return generate_latest(self.registry)

    def identify(self, *, qemu_img: str) -> None:
        """Say in ``build_info`` which version this is, on which Python, with which qemu-img."""
        self.build_info.info(
            {
                "version": cacheagent.__version__,
                "python": platform.python_version(),
                "qemu_img": qemu_img,
            }
        )

    def _add_requests(self) -> None:
        labels = ("operation", "result")
        self.requests_total = self._counter("requests_total", "Requests to the API.", labels)
        self.request_duration_seconds = self._histogram(
            "request_duration_seconds", "Time to answer.", _REQUEST_BUCKETS, labels
        )
        for operation, result in itertools.product(OPERATIONS, RESULTS):
            if operation in FETCHING_OPERATIONS or result not in {"miss", "joined"}:
                self.requests_total.labels(operation, result)
                self.request_duration_seconds.labels(operation, result)
        self.disk_create_seconds = self._histogram(
            "disk_create_seconds",
            "Time to make a disk once its base is there.",
            _DISK_BUCKETS,
            {"mode": DISK_MODES},
        )
        self.connections = self._gauge("connections", "Connections to the API and the metrics.")
        self.connections_dropped_total = self._counter(
            "connections_dropped_total",
            "Connections that the daemon closed by itself.",
            {"reason": DROP_REASONS},
        )
        self.access_checks_total = self._counter(
            "access_checks_total", "May this token have this image?", {"result": ACCESS_RESULTS}
        )

    def _add_downloads(self) -> None:
        self.download_bytes_total = self._counter(
            "download_bytes_total", "Bytes received.", {"source": DOWNLOAD_SOURCES}
        )
        self.download_seconds = self._histogram(
            "download_seconds", "Time of a whole download.", _DOWNLOAD_BUCKETS
        )
        self.downloads_in_progress = self._gauge("downloads_in_progress", "Downloads running now.")
        self.download_waiters = self._gauge(
            "download_waiters", "Requests that wait for a base to come."
        )
        self.download_failures_total = self._counter(
            "download_failures_total", "Downloads that failed.", {"reason": DOWNLOAD_FAILURES}
        )
        self.download_resumed_bytes_total = self._counter(
            "download_resumed_bytes_total", "Bytes that a resumed download had already."
        )
        self.bytes_saved_total = self._counter(
            "bytes_saved_total", "Bytes not downloaded, since a base or a download was there."
        )

    def _add_contents(self) -> None:
        self.images = self._gauge("images", "Images known.", {"state": IMAGE_STATES})
        self.cache_bytes = self._gauge("cache_bytes", "Bytes of all bases.", {"kind": CACHE_BYTES})
        self.bases_in_use = self._gauge("bases_in_use", "Bases that something uses.")
        self.bases_pinned = self._gauge("bases_pinned", "Bases that an operator pinned.")
        self.leases = self._gauge("leases", "Leases held.")
        self.disks = self._gauge("disks", "Disks known.", {"mode": DISK_MODES})
        self.partial_bytes = self._gauge("partial_bytes", "Bytes of unfinished ingests.")
        self.unknown_files = self._gauge(
            "unknown_files", "Files in our folders that are not ours, and are left alone."
        )

    def _add_space(self) -> None:
        self.reserved_bytes = self._gauge("reserved_bytes", "Bytes promised to ingests.")
        self.filesystem_size_bytes = self._gauge(
            "filesystem_size_bytes", "Size of the file system of the cache."
        )
        self.filesystem_available_bytes = self._gauge(
            "filesystem_available_bytes", "Bytes that may still be written there."
        )
        self.watermark_bytes = self._gauge(
            "watermark_bytes", "Used bytes at which eviction starts, ends.", {"level": WATERMARKS}
        )
        self.oldest_unused_seconds = self._gauge(
            "oldest_unused_seconds", "Time since the last use of the base unused longest."
        )

    def _add_eviction(self) -> None:
        self.prune_runs_total = self._counter(
            "prune_runs_total",
            "Passes of the pruner.",
            {"trigger": PRUNE_TRIGGERS, "result": PRUNE_RESULTS},
        )
        self.prune_duration_seconds = self._histogram(
            "prune_duration_seconds", "Time of a pass of the pruner.", _PRUNE_BUCKETS
        )
        self.prune_freed_bytes_total = self._counter(
            "prune_freed_bytes_total", "Bytes freed, as measured on the file system."
        )
        self.prune_unmet_bytes = self._gauge(
            "prune_unmet_bytes", "Bytes that the last pass should have freed and could not."
        )
        self.evictions_total = self._counter(
            "evictions_total", "Bases evicted.", {"reason": EVICTION_REASONS}
        )
        self.eviction_skipped_total = self._counter(
            "eviction_skipped_total", "Bases that had to stay.", {"reason": SKIP_REASONS}
        )
        self.eviction_doubts = self._gauge(
            "eviction_doubts", "What keeps all bases from eviction now, since it cannot be told."
        )
        self.quarantine_bytes = self._gauge(
            "quarantine_bytes", "Bytes of refused images and damaged bases in quarantine."
        )
        self.quarantine_files = self._gauge("quarantine_files", "Refused images in quarantine.")
        self.prune_last_success_timestamp_seconds = self._gauge(
            "prune_last_success_timestamp_seconds", "When a pass last did what it should."
        )

    def _add_checks(self) -> None:
        self.reconcile_drift_total = self._counter(
            "reconcile_drift_total", "Differences that were found.", {"kind": DRIFT_KINDS}
        )
        self.scrub_bytes_total = self._counter("scrub_bytes_total", "Bytes of bases read again.")
        self.scrub_failures_total = self._counter(
            "scrub_failures_total", "Bases that were no longer what they had been."
        )
        self.reinspections_total = self._counter(
            "reinspections_total",
            "Bases of older rules that were inspected again.",
            {"result": REINSPECTION_RESULTS},
        )
        self.bases_of_older_rules = self._gauge(
            "bases_of_older_rules", "Bases that nobody gets before they are inspected again."
        )

    def _add_surroundings(self) -> None:
        self.glance_requests_total = self._counter(
            "glance_requests_total",
            "Requests to Glance.",
            {"call": GLANCE_CALLS, "status": GLANCE_STATUSES},
        )
        self.token_refresh_failures_total = self._counter(
            "token_refresh_failures_total", "Times that Keystone gave no token."
        )
        self.qmp_guests = self._gauge("qmp_guests", "Guests by QMP.", {"state": GUEST_STATES})
        self.inotify_overflows_total = self._counter(
            "inotify_overflows_total", "Times that the kernel dropped events."
        )
        self.unwatched_folders = self._gauge(
            "unwatched_folders", "Folders that cannot be watched: passes find what happens there."
        )
        self.build_info = Info(
            f"{PREFIX}build", "Versions: of cacheagent, Python, qemu-img.", registry=self.registry
        )
        self.sandbox = self._gauge(
            "sandbox",
            "What qemu-img is shut in by: 1 for the one in force.",
            {"kind": tuple(SandboxKind)},
        )
        self.config_reload_success = self._gauge(
            "config_reload_success", "Whether the last reading of the configuration succeeded."
        )

    def _counter(self, name: str, text: str, labels: Labels = ()) -> Counter:
        return _from_start(Counter(PREFIX + name, text, labels, registry=self.registry), labels)

    def _gauge(self, name: str, text: str, labels: Labels = ()) -> Gauge:
        return _from_start(Gauge(PREFIX + name, text, labels, registry=self.registry), labels)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Labels = ()
    ) -> Histogram:
        metric = Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)
        return _from_start(metric, labels)


def _from_start(metric: M, labels: Labels) -> M:
    """Make every combination of the values known; bare names wait for their first use."""
    if isinstance(labels, Mapping):
        for combination in itertools.product(*labels.values()):
            metric.labels(*combination)
    return metric
