"""What a daemon from memory says of its bases: why they stay, what a pass does, what is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    Json = dict[str, Any]

GIB = 1 << 30

_BOUNDS = (
    *("cache_bytes", "min_keep_bytes", "size_bytes", "used_bytes", "high_watermark_bytes"),
    *("low_watermark_bytes", "free_bytes", "min_free_bytes", "reserved_bytes"),
)


def why(image: Json, base_id: str) -> Json:
    """Give why the image stays: a pin, or no need of room."""
    pinned = image["pinned"]
    same = ("image_id", "state", "pinned", "allocated_bytes", "fetched_at", "last_used_at")
    return {
        **{key: image[key] for key in same},
        "base_id": base_id,
        "verdict": "stays",
        "reason": None,
        "users": [{"kind": "pin", "detail": image["image_id"]}] if pinned else [],
        "rules": ["not_needed"],
        "position": None if pinned else 1,
        "unused_bases": 1,
        "free_at": None,
        "idle_at": None if pinned else image["last_used_at"],
        "bounds": dict.fromkeys(_BOUNDS, GIB) | {"max_size_bytes": None, "needed_bytes": 0},
        "summary": "It stays, as an example.",
    }


def verification(image_id: str, base_id: str, *, damaged: bool) -> Json:
    """Give what came of reading a base of 3 GiB for two seconds."""
    return {
        "image_id": image_id,
        "base_id": base_id,
        "outcome": "damaged" if damaged else "verified",
        "algorithm": "sha512",
        "expected": "ab" * 64,
        "actual": "cd" * 64 if damaged else "ab" * 64,
        "bytes_read": 3 * GIB,
        "seconds": 2.0,
        "error": "its sha512 is another one" if damaged else None,
    }


def pruned(images: Iterable[Json], wanted: Json, *, busy: str) -> Json:
    """Give a pass: what is pinned stays, ``busy`` is found in use at last, the others go."""
    ready = [image for image in images if image["state"] == "ready"]
    stays = [image for image in ready if image["pinned"]]
    skipped = [image for image in ready if image not in stays and image["image_id"] == busy]
    goes = [image for image in ready if image not in stays and image not in skipped]
    held = {"users": [{"kind": "pin", "detail": "somebody"}]}
    late = {"users": [{"kind": "doubt", "detail": "it changed while the plan was made"}]}
    rest = {"rules": ["min_age"], "position": None, "free_at": None, "idle_at": None}
    return {
        "dry_run": wanted["dry_run"],
        "needed_bytes": wanted["free_bytes"] or 0,
        "freed_bytes": sum(image["allocated_bytes"] for image in goes),
        "unmet_bytes": GIB if stays else 0,
        "unmet_inodes": 0,
        "dropped": [_dropped(image) for image in goes],
        "evicted": [_entry(image) for image in goes],
        "stay": [_entry(image) | held | rest for image in stays],
        "skipped": [_entry(image) | late for image in skipped],
    }


def _dropped(image: Json) -> Json:
    name = f"{image['image_id']}.20260301T120000000000Z.corrupt"
    return {"name": name, "image_id": image["image_id"], "bytes": 4096}


def _entry(image: Json) -> Json:
    return {
        "base_id": image["base"]["base_id"],
        "image_ids": [image["image_id"]],
        "reason": "operator",
        "bytes": image["allocated_bytes"],
        "last_used_at": image["last_used_at"],
    }
