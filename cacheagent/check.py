"""Would the daemon start: what a configuration names on this host is looked up, nothing is made."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from cacheagent import wiring
from cacheagent.api import listen
from cacheagent.backends import qcow2, signing
from cacheagent.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheagent.config import Config, ImagesConfig


async def check(config: Config) -> None:
    """Find the groups, the files, the cloud and the sandbox that are named, as the daemon will.

    Neither Keystone nor Glance is asked for anything. The ``OS_*`` variables are those of who
    asks: they have to be the daemon's.

    Raises:
        ConfigError: one is not there, or cannot be used; the message names the key.

    """
    await asyncio.to_thread(wiring.file_group, config.storage)
    await listen.check(config.api)
    if config.qemu.wanted_sandbox is not None:  # else the daemon takes the best that there is
        await wiring.open_sandbox(config.qemu, on_refusal=lambda *_: None)
    async with contextlib.AsyncExitStack() as stack:
        await wiring.open_glance(stack, config.glance, Metrics())


def doubts(config: Config) -> Iterator[str]:
    """Tell what the daemon would start with, and yet not as its operator thinks. It blocks."""
    for folder in config.storage.scan_dirs:
        why = None
        if not folder.is_dir():
            why = "is no folder that is there"
        elif qcow2.is_empty(folder):
            why = "is empty, as a mount point is without its file system"
        if why:
            yield f"storage.scan_dirs: {folder} {why}: while that is so, nothing is evicted"
    if config.images.verify_signatures:
        yield from _signers(config.images)


def _signers(images: ImagesConfig) -> Iterator[str]:
    """Tell what keeps all images out: those whose signatures count cannot be found."""
    path, folder = images.signature_ca_file, images.certificates_dir
    if path is not None:
        try:
            signing.read_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it has no certificate"
            yield f"images.signature_ca_file: {path}: {why}: while that is so, nobody gets an image"
    if folder is not None and not folder.is_dir():
        yield f"images.certificates_dir: {folder} is no folder that is there"
