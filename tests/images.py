"""Small real images in every format, by the tools that make them in earnest."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cache import cached, key_of
from tests.needs import require_programs

VIRTUAL_SIZE = 64 << 20
CONTENT_BYTES = 4 << 20

CONVERTED = {
    "disk.qcow2": ("qcow2", "compat=1.1"),
    "disk-v2-compressed.qcow2": ("qcow2", "compat=0.10", "-c"),
    "disk.vmdk": ("vmdk", "subformat=monolithicSparse"),
    "disk-stream.vmdk": ("vmdk", "subformat=streamOptimized"),
    "disk.vdi": ("vdi", ""),
    # Without force_size a VHD is rounded up to what a disk's geometry can say.
    "disk.vhd": ("vpc", "subformat=dynamic,force_size=on"),
    "disk.vhdx": ("vhdx", "subformat=dynamic"),
}
"""Files that qemu-img makes of disk.raw: its name for the format, creation options, flags."""

ISO = "grub-rescue-cdrom.iso"


@dataclass(frozen=True, slots=True)
class RealImage:
    """A file that an image is made of, and what Glance calls its format."""

    path: Path
    disk_format: str
    virtual_size_bytes: int

    @property
    def name(self) -> str:
        """The name of the file, which says how it was made."""
        return self.path.name


def real_images() -> dict[str, RealImage]:
    """Return the images by the names of their files.

    All but the ISO have the same content: an ext4 file system of 64 MiB without a partition
    table, with 4 MiB of random data in it. The ISO is a boot disk out of a Debian package.
    They are made on first use and kept in ``.cache/images``; what uses them must not write to
    them. Skips the test where a program is missing.
    """
    require_programs("qemu-img", "mke2fs", "apt-get", "dpkg-deb")
    folder = cached("images", key_of([Path(__file__)]), _build)
    disks = {
        name: RealImage(folder / name, name.rpartition(".")[2], VIRTUAL_SIZE)
        for name in ("disk.raw", *CONVERTED)
    }
    iso = folder / ISO
    return {**disks, ISO: RealImage(iso, "iso", iso.stat().st_size)}


def _build(folder: Path) -> None:
    raw = folder / "disk.raw"
    with tempfile.TemporaryDirectory() as content:
        (Path(content) / "random").write_bytes(os.urandom(CONTENT_BYTES))
        _run("mke2fs", "-q", "-t", "ext4", "-d", content, raw, f"{VIRTUAL_SIZE >> 10}k")
    for name, (driver, options, *flags) in CONVERTED.items():
        chosen = ("-o", options) if options else ()
        command = ("qemu-img", "convert", "-f", "raw", "-O", driver, *chosen, *flags)
        _run(*command, raw, folder / name)
    with tempfile.TemporaryDirectory() as unpacked:
        # Downloading needs no root, and neither does unpacking. apt's own user may have no
        # access to the folder, of which apt warns.
        subprocess.run(
            ["apt-get", "-qq", "download", "grub-rescue-pc"],
            cwd=unpacked,
            check=True,
            capture_output=True,
        )
        _run("dpkg-deb", "-x", *Path(unpacked).glob("*.deb"), unpacked)
        shutil.copy(Path(unpacked) / "usr/lib/grub-rescue" / ISO, folder / ISO)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
