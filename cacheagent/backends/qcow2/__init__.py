"""qcow2 files as others leave them: their headers, and the bases that overlays lead to.

Nothing here starts a program or looks at the content of a disk: what a guest wrote is never
probed, the header is QEMU's.
"""

from __future__ import annotations

from cacheagent.backends.qcow2.chain import Doubt
from cacheagent.backends.qcow2.header import Qcow2Header, is_empty, read_header
from cacheagent.backends.qcow2.names import FileNames, file_names, mentioned_bases
from cacheagent.backends.qcow2.scan import Overlays, OverlayScanner, bases_named

__all__ = [
    "Doubt",
    "FileNames",
    "OverlayScanner",
    "Overlays",
    "Qcow2Header",
    "bases_named",
    "file_names",
    "is_empty",
    "mentioned_bases",
    "read_header",
]
