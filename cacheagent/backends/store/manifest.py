"""The manifest beside each base: all that a new catalog must know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from cacheagent.model import Base, GlanceImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A base as it was published, and the images that it stood for at that time."""

    base: Base
    images: tuple[GlanceImage, ...]


_ADAPTER = TypeAdapter(Manifest)


def dump(manifest: Manifest) -> bytes:
    """Write a manifest as JSON."""
    return _ADAPTER.dump_json(manifest, indent=1)


def load(text: bytes) -> Manifest | None:
    """Read a manifest; None for anything that is not one, since it is then no use."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None


def measured(manifest: Manifest, allocated: int) -> Manifest:
    """Give the manifest with the bytes that the file really takes."""
    return replace(manifest, base=replace(manifest.base, allocated=allocated))
