"""What is looked at once the inspection has let the bytes of an image in.

qemu-img opens it, and what a conversion made of it is looked at as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cacheagent.backends.inspect import formats_of_ends
from cacheagent.errors import ImageUnacceptableError, QemuImgError
from cacheagent.policy import admission

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.qemuimg import QemuImg
    from cacheagent.policy.admission import ImageRules, SourceFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What qemu-img saw of an image: its virtual size in bytes, and if clusters are compressed."""

    virtual_size: int
    compressed: bool


async def look_again(
    qemu: QemuImg, path: Path, source_format: SourceFormat, rules: ImageRules
) -> Opened:
    """Let qemu-img open the file as what it was found to be; give what it saw.

    Raises:
        ImageUnacceptableError: what it says breaks a rule.
        QemuImgError: it cannot open the file, or a limit stopped it.

    """
    info = await qemu.info(path, source_format)
    admission.admit_opened(
        virtual_size=info.virtual_size,
        backing_file=info.backing_file,
        data_file=info.data_file,
        encrypted=info.encrypted,
        corrupt=info.corrupt,
        rules=rules,
    )
    if source_format is admission.SourceFormat.RAW:
        # It has no tables to check, and nothing in it is compressed.
        return Opened(virtual_size=info.virtual_size, compressed=False)
    try:
        compressed = await qemu.check(path, source_format)
    except QemuImgError as error:
        if error.at_limit:
            raise
        raise ImageUnacceptableError("corrupt", f"the image is damaged: {error}") from error
    return Opened(virtual_size=info.virtual_size, compressed=compressed)


async def look_inside(path: Path) -> None:
    """Look whether the disk of an image, which has been converted to raw, is plain data.

    Raises:
        ImageUnacceptableError: it is an image itself.

    """
    admission.admit_inside(await asyncio.to_thread(formats_of_ends, path))
