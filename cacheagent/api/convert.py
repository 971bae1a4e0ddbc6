"""From the values of the model to the JSON of the answers: pure, nothing is asked or opened."""

from __future__ import annotations

import math
from datetime import UTC
from typing import TYPE_CHECKING

from cacheagent.api import wire
from cacheagent.policy.boot import KERNEL, RAMDISK
from cacheagent.policy.eviction import watermark

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from cacheagent.model import (
        Base,
        DiskView,
        ImageId,
        ImageView,
        InstanceId,
        Progress,
        QuarantineView,
        StatusView,
        User,
        Verification,
    )
    from cacheagent.policy.eviction import Eviction, Stay
    from cacheagent.policy.verdict import Why
    from cacheagent.service.events import Event
    from cacheagent.service.operator import Pruned
    from cacheagent.service.removal import Skipped


def disk(view: DiskView) -> wire.Disk:
    """Give the disk as it is answered."""
    made = view.disk
    return wire.Disk(
        instance_id=made.key.instance_id,
        name=made.key.name,
        state=made.state,
        path=_text(view.path),
        format=made.format,
        mode=made.mode,
        virtual_size_bytes=made.virtual_size,
        image_id=made.image_id,
        base=_base(view.base, view.base_path),
        boot=_boot(view.boot),
        cache=made.cache,
        created_at=_utc(made.created_at),
        operation=None,
        error=_text(made.error) if made.error is not None else None,
    )


def _boot(views: Iterable[DiskView]) -> wire.Boot | None:
    files = {
        view.disk.key.name: wire.BootFile(
            path=_text(view.path),
            state=view.disk.state,
            size_bytes=view.disk.virtual_size,
            image_id=view.disk.image_id,
        )
        for view in views
    }
    return wire.Boot(kernel=files.get(KERNEL), ramdisk=files.get(RAMDISK)) if files else None


def instance(instance_id: InstanceId, views: Iterable[DiskView]) -> wire.Instance:
    """Give an instance with its disks as it is answered."""
    return wire.Instance(instance_id=instance_id, disks=[disk(view) for view in views])


def image(view: ImageView) -> wire.Image:
    """Give the image as it is answered; what lies here goes before what Glance says."""
    base, described = view.base, view.image
    return wire.Image(
        image_id=described.image_id,
        name=_text(described.name),
        state=view.state,
        base=_base(base, view.base_path),
        size_bytes=base.size if base else described.size,
        virtual_size_bytes=base.virtual_size if base else described.virtual_size,
        allocated_bytes=base.allocated if base else 0,
        disk_format=_text(described.disk_format) if described.disk_format is not None else None,
        progress=progress(view.progress) if view.progress else None,
        pinned=view.pinned,
        in_use=bool(view.users),
        users=[user(one) for one in view.users],
        fetched_at=_utc(base.fetched_at) if base else None,
        last_used_at=_utc(base.last_used_at) if base else None,
        error=_text(view.error) if view.error is not None else None,
    )


def progress(now: Progress) -> wire.Progress:
    """Give how far an ingest is; the rate is whole bytes, the time left is rounded up."""
    left = max(0, now.bytes_total - now.bytes_done)
    known = now.bytes_per_second > 0 and now.bytes_total > 0
    return wire.Progress(
        bytes_done=now.bytes_done,
        bytes_total=now.bytes_total,
        bytes_per_second=max(0, int(now.bytes_per_second)),
        eta_seconds=math.ceil(left / now.bytes_per_second) if known else None,
    )


def user(one: User) -> wire.User:
    """Give a user of a base, with those keys alone that name it."""
    return wire.User.model_validate({name: _text(fact) for name, fact in one.facts().items()})


def why(found: Why) -> wire.Why:
    """Give why an image stays, or when it goes, as it is answered."""
    view, verdict = found.view, found.verdict
    base = view.base
    return wire.Why(
        image_id=view.image.image_id,
        state=view.state,
        base_id=base.base_id if base else None,
        verdict=None if verdict is None else "goes" if verdict.goes else "stays",
        reason=verdict.reason if verdict else None,
        users=[user(one) for one in (verdict.users if verdict else view.users)],
        rules=list(verdict.rules) if verdict else [],
        position=verdict.position if verdict else None,
        unused_bases=verdict.unused if verdict else None,
        pinned=view.pinned,
        allocated_bytes=base.allocated if base else 0,
        fetched_at=_utc(base.fetched_at) if base else None,
        last_used_at=_utc(base.last_used_at) if base else None,
        free_at=_maybe(verdict.free_at) if verdict else None,
        idle_at=_maybe(verdict.idle_at) if verdict else None,
        bounds=_bounds(found),
        summary=_text(found.summary),
    )


def verification(image_id: ImageId, done: Verification) -> wire.Verification:
    """Give what came of reading the base of the image again."""
    return wire.Verification(
        image_id=image_id,
        base_id=done.base_id,
        outcome=done.outcome,
        algorithm=done.algorithm,
        expected=done.expected,
        actual=done.actual,
        bytes_read=done.bytes_read,
        seconds=done.seconds,
        error=None if done.error is None else _text(done.error),
    )


def pruned(done: Pruned) -> wire.Pruned:
    """Give what a pass did, or would do, as it is answered, but for the bases that stay."""
    return wire.Pruned(
        dry_run=done.dry_run,
        needed_bytes=done.needed_bytes,
        freed_bytes=done.freed_bytes,
        unmet_bytes=done.unmet_bytes,
        unmet_inodes=done.unmet_inodes,
        dropped=[
            wire.DroppedFile(name=str(each.name), image_id=each.name.image_id, bytes=each.allocated)
            for each in done.dropped
        ],
        evicted=[_evicted(each) for each in done.evicted],
        stay=[],
        skipped=[_skipped(each) for each in done.skipped],
    )


def event(told: Event) -> dict[str, object]:
    """Give what is told of an event beside its id and kind: when it was, and its facts."""
    facts = {
        name: _text(fact) if isinstance(fact, str) else fact for name, fact in told.facts.items()
    }
    return {"at": _utc(told.at).isoformat().replace("+00:00", "Z"), **facts}


def _bounds(found: Why) -> wire.Bounds:
    snapshot, policy = found.snapshot, found.policy
    space = snapshot.space
    return wire.Bounds(
        cache_bytes=snapshot.cache_bytes,
        max_size_bytes=policy.max_size,
        min_keep_bytes=policy.min_keep,
        size_bytes=space.total,
        used_bytes=max(0, space.total - space.available),
        high_watermark_bytes=watermark(policy.high_watermark, space.total),
        low_watermark_bytes=watermark(policy.low_watermark, space.total),
        free_bytes=space.available,
        min_free_bytes=policy.min_free,
        reserved_bytes=snapshot.reserved,
        needed_bytes=found.needed_bytes,
    )


def _evicted(each: Eviction) -> wire.EvictedBase:
    return wire.EvictedBase(
        base_id=each.base.base_id,
        image_ids=list(each.images),
        reason=each.reason,
        bytes=each.frees,
        last_used_at=_utc(each.base.last_used_at),
    )


def staying(each: Stay) -> wire.StayingBase:
    """Give a base that stays, with everything that keeps it."""
    return wire.StayingBase(
        base_id=each.base.base_id,
        image_ids=list(each.images),
        reason=each.wanted,
        users=[user(one) for one in each.users],
        rules=list(each.rules),
        position=each.position,
        bytes=each.base.allocated,
        last_used_at=_utc(each.base.last_used_at),
        free_at=_maybe(each.free_at),
        idle_at=_maybe(each.idle_at),
    )


def _skipped(each: Skipped) -> wire.SkippedBase:
    return wire.SkippedBase(
        base_id=each.eviction.base.base_id,
        image_ids=list(each.eviction.images),
        reason=each.eviction.reason,
        bytes=each.eviction.frees,
        users=[user(one) for one in each.users],
    )


def status(view: StatusView) -> wire.Status:
    """Give the agent at a glance as it is answered."""
    return wire.Status(
        version=view.version,
        started_at=_utc(view.started_at),
        uptime_seconds=view.uptime_seconds,
        ready=view.ready,
        stopping=view.stopping,
        sandbox=view.sandbox,
        space=_space(view),
        eviction=wire.Pressure(
            doubts=[user(one) for one in view.doubts], unmet_bytes=view.unmet_bytes
        ),
        quarantine=_quarantine(view.quarantine),
        counts=dict(view.counts),
        loops={
            name: wire.Loop(last_run_at=_utc(at) if at else None) for name, at in view.loops.items()
        },
        glance=wire.Glance(
            reachable=view.glance_reachable,
            checked_at=_utc(view.glance_checked_at) if view.glance_checked_at else None,
        ),
    )


def _space(view: StatusView) -> wire.Space:
    return wire.Space(
        size_bytes=view.space.total,
        used_bytes=max(0, view.space.total - view.space.available),
        free_bytes=view.space.available,
        cache_bytes=view.cache_bytes,
        max_size_bytes=view.max_size,
        reserved_bytes=view.reserved,
        high_watermark_bytes=view.high_watermark_bytes,
        low_watermark_bytes=view.low_watermark_bytes,
        min_free_bytes=view.min_free,
    )


def _quarantine(view: QuarantineView) -> wire.Quarantine:
    return wire.Quarantine(
        bytes=view.allocated,
        max_size_bytes=view.max_size,
        count=view.count,
        files=[
            wire.QuarantinedFile(
                name=each.name,
                image_id=each.image_id,
                reason=each.reason,
                detail=_text(each.detail),
                size_bytes=each.allocated,
                quarantined_at=_utc(each.at),
            )
            for each in view.files
        ],
    )


def _base(base: Base | None, path: Path | None) -> wire.BaseRef | None:
    if base is None or path is None:
        return None
    return wire.BaseRef(base_id=base.base_id, path=_text(path), format=base.format)


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)


def _maybe(time: datetime | None) -> datetime | None:
    return None if time is None else _utc(time)


def _text(value: str | Path) -> str:
    """Replace what UTF-8 cannot carry.

    A file name may be any bytes, and JSON lets an image's name hold half of a surrogate pair
    (RFC 8259, section 8.2): one such name must not make a whole list unreadable.
    """
    return str(value).encode("utf-8", "replace").decode("utf-8")
