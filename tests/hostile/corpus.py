"""All images of the corpus. Whoever adds some adds a table of rows here."""

from __future__ import annotations

from typing import Final

from tests.hostile.disks import DISKS
from tests.hostile.plain import PLAIN
from tests.hostile.qcow2 import QCOW2
from tests.hostile.vmdk import VMDK

CORPUS: Final = (*QCOW2, *VMDK, *DISKS, *PLAIN)
