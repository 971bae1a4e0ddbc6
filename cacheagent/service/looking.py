"""The second look at an image, by qemu-img, once the inspection has let its bytes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheagent.errors import ImageUnacceptableError, QemuImgError
from cacheagent.policy import admission

if TYPE_CHECKING:
    from pathlib import Path

    from cacheagent.backends.qemuimg import QemuImg
    from cacheagent.policy.admission import ImageRules, SourceFormat


async def look_again(
    qemu: QemuImg, path: Path, source_format: SourceFormat, rules: ImageRules
) -> int:
    """Let qemu-img open the file as what it was found to be; give its virtual size.

    Raises:
        ImageUnacceptableError: what it says breaks a rule.
        QemuImgError: it cannot open the file.

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
    try:
        await qemu.check(path, source_format)
    except QemuImgError as error:
        raise ImageUnacceptableError("corrupt", f"the image is damaged: {error}") from error
    return info.virtual_size
