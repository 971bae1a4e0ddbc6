"""What the first and the last bytes of an image say, beyond what oslo.utils looks at.

Pure functions over bytes, so that hostile headers can be thrown at them by the thousand. Each
format has a module, which says where its facts come from. What lies beyond these bytes is left
to ``qemu-img check``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cacheagent.policy.admission import Failure
from cacheagent.policy.headers import qcow2, vdi, vhd, vmdk

HEAD_LENGTH: Final = 1 << 20
"""Bytes of the beginning that ``examine`` wants: QEMU reads no longer VMDK descriptor."""

TAIL_LENGTH: Final = 1536
"""Bytes of the end that ``examine`` wants: the last three sectors, a VMDK's footer."""

_START_LENGTH: Final = 64 << 10
"""Bytes of the beginning that tell the format; most formats have no header beyond them."""

_MAGICS: Final = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"conectix", "vhd"),
    (b"vhdxfile", "vhdx"),
    (b"QED\x00", "qed"),
    (b"LUKS\xba\xbe", "luks"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
)

# What QEMU's own probe takes for a VMDK descriptor: comments and blank lines, then a version.
_VERSION_LINE = re.compile(rb"(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n")
_DESCRIPTOR_COMMENT = re.compile(rb"#\s*disk\s*descriptorfile", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What stands in the headers: formats, broken rules, and the largest size stated, or 0."""

    formats: frozenset[str]
    failures: tuple[Failure, ...]
    virtual_size: int


def formats_of_start(head: bytes) -> frozenset[str]:
    """Give the formats that a file speaks of with its first bytes, none for plain data."""
    formats = {name for magic, name in _MAGICS if head.startswith(magic)}
    if _is_text_descriptor(head):
        formats.add("vmdk")
    if vdi.is_vdi(head):
        formats.add("vdi")
    return frozenset(formats)


def wanted(head: bytes) -> int:
    """Tell how many of its first bytes ``examine`` looks at; the rest need not be kept for it."""
    formats = formats_of_start(head)
    # Their tables, and the text of a descriptor, may lie anywhere in there.
    if not formats.isdisjoint({"vmdk", "vhd"}):
        return HEAD_LENGTH
    return max(_START_LENGTH, qcow2.wanted(head) if "qcow2" in formats else 0)


def examine(head: bytes, tail: bytes, length: int) -> Seen:
    """Look at the first ``HEAD_LENGTH`` and the last ``TAIL_LENGTH`` of ``length`` bytes.

    Never raises for whatever the bytes are.
    """
    formats = set(formats_of_start(head))
    failures: list[Failure] = []
    virtual_size = 0
    if "qcow2" in formats:
        failures += qcow2.broken_rules(head, length)
    if head.startswith(b"KDMV"):
        failures += vmdk.broken_rules(head, tail, length)
        virtual_size = vmdk.footer_size(head, tail)
    if _is_text_descriptor(head):
        failures.append(Failure("vmdk", "text-descriptor", "it only names other files"))
    if "vdi" in formats:
        failures += vdi.broken_rules(head, length)
    if "vhd" in formats:
        failures += vhd.broken_rules(head, length)
        virtual_size = max(virtual_size, vhd.size(head), vhd.size(vhd.footer(tail)))
    elif vhd.is_fixed(tail):
        formats.add("vhd-fixed")
        failures += vhd.fixed_failures(tail, length)
        virtual_size = max(virtual_size, vhd.size(vhd.footer(tail)))
    return Seen(formats=frozenset(formats), failures=tuple(failures), virtual_size=virtual_size)


def _is_text_descriptor(head: bytes) -> bool:
    # NUL bytes behind the text hide it from oslo.utils, while QEMU opens the files it names.
    start = head[:_START_LENGTH].lstrip(b" \t\r\n")
    return bool(_DESCRIPTOR_COMMENT.match(start) or _VERSION_LINE.match(start))
