"""Archives and compressed streams, good ones and others, for whoever takes images apart."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import tarfile
from functools import partial
from typing import TYPE_CHECKING, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMESPACE = "http://schemas.dmtf.org/ovf/envelope/1"

COMPRESS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "gzip": partial(gzip.compress, mtime=0),  # else two of one content differ
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}
"""What makes a stream of each kind."""


def descriptor(
    vmdk: bytes,
    capacity: int,
    *,
    href: str = "disk.vmdk",
    file: str = "",
    disk: str = "",
    before: str = "",
    more: str = "",
) -> bytes:
    """Give the ``.ovf`` of a disk; ``file`` and ``disk`` are more attributes of its elements.

    ``before`` stands before the envelope, ``more`` behind the disk.
    """
    size = "" if "ovf:size" in file else f'ovf:size="{len(vmdk)}"'
    held = "" if "ovf:capacity=" in disk else f'ovf:capacity="{capacity}"'
    return f"""<?xml version="1.0" encoding="UTF-8"?>{before}
<Envelope xmlns="{NAMESPACE}" xmlns:ovf="{NAMESPACE}">
 <References><File ovf:id="file1" ovf:href="{href}" {size} {file}/></References>
 <DiskSection><Info>Disks</Info>
  <Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" {held} {disk}/>{more}
 </DiskSection>
 <VirtualSystem ovf:id="vm"><Info>A machine</Info></VirtualSystem>
</Envelope>
""".encode()


def manifest(files: Mapping[str, bytes], algorithm: str = "SHA256") -> bytes:
    """Give the ``.mf`` of these files."""
    lines = (
        f"{algorithm}({name})= {hashlib.new(algorithm.lower(), data).hexdigest()}\n"
        for name, data in files.items()
    )
    return "".join(lines).encode()


def tar(
    files: Mapping[str, bytes],
    form: int = tarfile.USTAR_FORMAT,
    *more: tarfile.TarInfo,
    **fields: object,
) -> bytes:
    """Give an archive of files, and of ``more`` that have no bytes; ``fields`` are of each file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(data))
        for entry in more:
            archive.addfile(entry)
    return made.getvalue()


def ova(vmdk: bytes, capacity: int, *, algorithm: str | None = "SHA256") -> bytes:
    """Give a good OVA of one disk, with a manifest by ``algorithm``, or with none."""
    files = {"machine.ovf": descriptor(vmdk, capacity), "disk.vmdk": vmdk}
    if algorithm:
        files = {"machine.ovf": files["machine.ovf"], "machine.mf": manifest(files, algorithm)}
        files["disk.vmdk"] = vmdk
    return tar(files)
