"""The guest's image: a Debian made by mmdebstrap, with a boot loader, without root.

mmdebstrap gives a tar, genext2fs makes a file system of it without mounting anything, and what
grub-install would write into the first sectors is written here: the MBR of GRUB, a partition
table, and GRUB's core image in the gap before the first partition.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cache import cached, key_of
from tests.needs import require, require_programs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent / "root"
SECTOR = 512
FIRST_SECTOR = 2048
FILE_SYSTEM_MIB = 512
INODES = 32768
MBR_CODE_BYTES = 440
"""Up to here a boot sector is code; then come the disk's signature and the partition table."""

KERNELS = {"Debian": "linux-image-cloud-amd64", "Ubuntu": "linux-image-virtual"}
PACKAGES = ["systemd-sysv", "initramfs-tools", "grub-pc-bin", "grub-common", "e2fsprogs"]
GRUB_MODULES = ["biosdisk", "part_msdos", "ext2", "normal", "linux", "serial", "terminal"]

# The initramfs gets the three drivers that find the root file system, and not all there are:
# software emulation would spend seconds on unpacking the rest.
INITRAMFS_HOOK = """
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/guest"
printf 'virtio_pci\\nvirtio_blk\\next4\\n' >"$1/usr/share/initramfs-tools/modules.d/guest"
"""
BOOT_HOOK = f"""
chroot "$1" grub-mkimage -O i386-pc -o /boot/core.img -p '(hd0,msdos1)/boot/grub' \
    {" ".join(GRUB_MODULES)}
chroot "$1" systemctl enable jobs.service
rm -rf "$1"/var/lib/apt/lists/*
"""


def guest_image() -> Path:
    """Return the path of a bootable qcow2 image of a Debian (or Ubuntu), like this host's.

    Its virtual size is 513 MiB. It is made on first use, from the package sources that apt on
    this machine is set up with, and kept in ``.cache/guest``. Skips the test where a program is
    missing.
    """
    require_programs("mmdebstrap", "genext2fs", "tune2fs", "e2fsck", "qemu-img", "apt-get")
    require(_may_bootstrap(), "mmdebstrap can be neither root nor in a user namespace of its own")
    files = sorted(path for path in ROOT.rglob("*") if path.is_file())
    key = key_of([Path(__file__), _suite(), *(str(f.relative_to(ROOT)) for f in files), *files])
    return cached("guest", key, _build) / "guest.qcow2"


def _may_bootstrap() -> bool:
    if os.geteuid() == 0:
        return True
    return subprocess.run(["mmdebstrap", "--unshare-helper", "true"], check=False).returncode == 0


def _suite() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.split("=")[1].strip('"') for line in lines if "VERSION_CODENAME=" in line)


def _build(folder: Path) -> None:
    tar, system, disk = folder / "root.tar", folder / "root.ext4", folder / "disk.raw"
    _bootstrap(folder, tar)
    _make_file_system(tar, system)
    _assemble(tar, system, disk)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, folder / "guest.qcow2")
    for path in (tar, system, disk):
        path.unlink()


def _bootstrap(folder: Path, tar: Path) -> None:
    origin, sources = _package_sources()
    (folder / "sources.list").write_text(sources)
    with tarfile.open(folder / "files.tar", "w") as files:
        files.add(ROOT, arcname=".", filter=_owned_by_root)
    excluded = (f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale"))
    _run(
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join([KERNELS[origin], *PACKAGES])}",
        *excluded,
        '--aptopt=APT::Install-Recommends "false"',
        *_proxies(),
        f"--essential-hook={INITRAMFS_HOOK}",
        f"--customize-hook=tar-in {folder / 'files.tar'} /",
        f"--customize-hook={BOOT_HOOK}",
        _suite(),
        tar,
        folder / "sources.list",
    )


def _package_sources() -> tuple[str, str]:
    """Return the distribution's name and its package sources, as this machine's apt has them."""
    form = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = _run("apt-get", "indextargets", "--format", form, "Identifier: Packages")
    rows = [line.split() for line in listed.splitlines()]
    origin = next((row[0] for row in rows if row[0] in KERNELS), "Debian")
    keyring = f"/usr/share/keyrings/{origin.lower()}-archive-keyring.gpg"
    entries = (f"deb [signed-by={keyring}] {' '.join(r[1:])}\n" for r in rows if r[0] == origin)
    return origin, "".join(dict.fromkeys(entries))


def _proxies() -> Iterator[str]:
    """Hand on how apt on this machine reaches its sources: mmdebstrap reads no apt.conf."""
    for line in _run("apt-config", "dump").splitlines():
        if line.startswith(("Acquire::http", "Acquire::https")):
            yield f"--aptopt={line}"


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    return entry


def _make_file_system(tar: Path, system: Path) -> None:
    blocks = FILE_SYSTEM_MIB * 256
    _run("genext2fs", "-B", 4096, "-b", blocks, "-N", INODES, "-a", tar, system)
    # genext2fs knows ext2 only. The new features take effect after a check, which exits with
    # 1 for "errors corrected"; a second one must find nothing.
    _run("tune2fs", "-O", "extent,has_journal,dir_index", system)
    subprocess.run(["e2fsck", "-fy", system], check=False, capture_output=True)
    _run("e2fsck", "-fn", system)


def _assemble(tar: Path, system: Path, disk: Path) -> None:
    with tarfile.open(tar) as root:
        boot = _content(root, "./usr/lib/grub/i386-pc/boot.img")
        core = _content(root, "./boot/core.img")
    if len(core) > (FIRST_SECTOR - 1) * SECTOR:
        raise ValueError("GRUB's core image does not fit before the first partition")
    # Type 0x83 (Linux), bootable; the cylinders are out of range, so that readers take the LBA.
    sectors = system.stat().st_size // SECTOR
    beyond = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, beyond, 0x83, beyond, FIRST_SECTOR, sectors)
    table = b"gues\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"
    # boot.img looks for the core image in the sector after it, where we put it.
    with disk.open("wb") as out, system.open("rb") as content:
        out.write(boot[:MBR_CODE_BYTES] + table + core)
        out.seek(FIRST_SECTOR * SECTOR)
        shutil.copyfileobj(content, out, 1 << 22)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is not a file")
    return member.read()


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:].decode(errors="replace")
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}:\n{said}")
    return done.stdout.decode()
