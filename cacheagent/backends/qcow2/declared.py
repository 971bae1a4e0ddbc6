"""What the host itself says of the format of a file, whatever the file looks like.

A raw disk is a guest's from its first byte on. It can make its disk look like an overlay of a file
on a volume that is not mounted; only those who gave it the disk know better.
"""

from __future__ import annotations

import json
import os
from typing import Final

from cacheagent.backends.qcow2.header import opened
from cacheagent.errors import NotQcow2Error
from cacheagent.model import DiskFormat

_RAW = f".{DiskFormat.RAW}"
_LONGEST = 1 << 16

NOVA_FORMATS: Final = "disk.info"
"""The file beside Nova's disks, from paths to formats: QEMU is told what stands there, which no
guest can write (``resolve_driver_format`` in Nova's ``virt/libvirt/imagebackend.py``)."""


def is_raw(path: str) -> bool:
    """Tell whether the host calls the file at an absolute path raw, by its name or in writing.

    What cannot be read says nothing. For threads: it reads a file.
    """
    return path.endswith(_RAW) or _nova_says_raw(path)


def _nova_says_raw(path: str) -> bool:
    folder, name = os.path.split(path)
    try:
        with opened(f"{folder}/{NOVA_FORMATS}") as fd:
            told = json.loads(os.read(fd, _LONGEST))
    except (OSError, ValueError, RecursionError, NotQcow2Error):
        return False
    if not isinstance(told, dict):
        return False
    real = os.path.realpath(folder)
    return any(
        disk_format == "raw"
        and os.path.basename(other) == name  # noqa: PTH119 as it is written there
        and os.path.realpath(os.path.dirname(other)) == real  # noqa: PTH120 see above
        for other, disk_format in told.items()
    )
