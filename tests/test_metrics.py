"""What Prometheus finds at /metrics."""

from __future__ import annotations

import platform

from prometheus_client.parser import text_string_to_metric_families

import cacheagent
from cacheagent.metrics import FETCHING_OPERATIONS, OPERATIONS, Metrics, glance_status

CONTRACT = {
    "requests_total": {"operation", "result"},
    "request_duration_seconds": {"operation", "result"},
    "disk_create_seconds": {"mode"},
    "download_bytes_total": {"source"},
    "download_seconds": set(),
    "downloads_in_progress": set(),
    "download_waiters": set(),
    "download_failures_total": {"reason"},
    "download_resumed_bytes_total": set(),
    "bytes_saved_total": set(),
    "images": {"state"},
    "cache_bytes": {"kind"},
    "bases_in_use": set(),
    "bases_pinned": set(),
    "leases": set(),
    "disks": {"mode"},
    "reserved_bytes": set(),
    "partial_bytes": set(),
    "unknown_files": set(),
    "filesystem_size_bytes": set(),
    "filesystem_available_bytes": set(),
    "watermark_bytes": {"level"},
    "oldest_unused_seconds": set(),
    "prune_runs_total": {"trigger", "result"},
    "prune_duration_seconds": set(),
    "prune_freed_bytes_total": set(),
    "prune_unmet_bytes": set(),
    "evictions_total": {"reason"},
    "eviction_skipped_total": {"reason"},
    "prune_last_success_timestamp_seconds": set(),
    "reconcile_drift_total": {"kind"},
    "scrub_bytes_total": set(),
    "scrub_failures_total": set(),
    "reinspections_total": {"result"},
    "bases_of_older_rules": set(),
    "access_checks_total": {"result"},
    "connections": set(),
    "connections_dropped_total": {"reason"},
    "glance_requests_total": {"call", "status"},
    "token_refresh_failures_total": set(),
    "qmp_guests": {"state"},
    "inotify_overflows_total": set(),
    "unwatched_folders": set(),
    "eviction_doubts": set(),
    "quarantine_bytes": set(),
    "quarantine_files": set(),
    "build_info": {"version", "python", "qemu_img"},
    "sandbox": {"kind"},
    "config_reload_success": set(),
}
"""Every metric that others rely on, with its labels."""


def _samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            name = sample.name.removesuffix("_count")
            found.setdefault(name, []).append((sample.labels, sample.value))
    return found


def test_every_metric_is_there_from_the_start() -> None:
    """Dashboards and alerts find each name with its labels before anything happened."""
    samples = _samples(Metrics())
    for name, labels in CONTRACT.items():
        assert samples[f"cacheagent_{name}"], name
        assert all(set(found) == labels for found, _ in samples[f"cacheagent_{name}"]), name


def test_nothing_else_bears_the_prefix() -> None:
    """A metric that others rely on is in the list above, and no other is made."""
    families = text_string_to_metric_families(Metrics().render().decode())
    counters = {name.removesuffix("_total"): name for name in CONTRACT}
    ours = {family.name for family in families if family.name.startswith("cacheagent_")}
    assert {counters.get(name.removeprefix("cacheagent_")) for name in ours} == set(CONTRACT)


def test_counters_begin_at_zero_for_each_result_that_can_occur() -> None:
    """A rate has a first point; a miss is counted only where an image is fetched."""
    samples = _samples(Metrics())["cacheagent_requests_total"]
    assert all(value == 0 for _, value in samples)
    assert {labels["operation"] for labels, _ in samples} == set(OPERATIONS)
    missing = {labels["operation"] for labels, _ in samples if labels["result"] == "miss"}
    assert missing == set(FETCHING_OPERATIONS)


def test_build_info_names_the_versions() -> None:
    """An operator sees which version runs where."""
    metrics = Metrics()
    metrics.identify(qemu_img="7.2.0")
    ((labels, value),) = _samples(metrics)["cacheagent_build_info"]
    assert labels == {
        "version": cacheagent.__version__,
        "python": platform.python_version(),
        "qemu_img": "7.2.0",
    }
    assert value == 1


def test_two_agents_do_not_share_their_figures() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(), Metrics()
    one.leases.set(3)
    assert _samples(other)["cacheagent_leases"] == [({}, 0.0)]


def test_the_process_is_measured_too() -> None:
    """Memory and CPU of the agent are there, under the names that every dashboard knows."""
    assert "process_resident_memory_bytes" in _samples(Metrics())


def test_glance_statuses_are_a_closed_list() -> None:
    """A strange server cannot make new series."""
    assert glance_status(404) == "404"
    assert glance_status(599) == "other"
    assert glance_status(None) == "none"
