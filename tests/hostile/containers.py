"""Archives and compressed streams that want to be more than they are.

Offsets in a header of tar are those of POSIX.1-2017 ``pax``.
"""

from __future__ import annotations

import functools
import gzip
import tarfile
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.fakes.containers import COMPRESS, descriptor, manifest, ova, tar
from tests.hostile.table import Row, content, made

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MIB = 1 << 20
gzipped = partial(gzip.compress, mtime=0)
BLOCK = 512
ANOTHER_DISK = '<Disk ovf:diskId="b" ovf:fileRef="file1" ovf:capacity="1"/>'
LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@functools.cache
def vmdk() -> bytes:
    """Give the disk that is in good ones."""
    return made("vmdk", "subformat=streamOptimized")


def good() -> bytes:
    """Give an archive that nothing is wrong with."""
    return ova(vmdk(), len(content()))


def described(**words: str) -> dict[str, bytes]:
    """Give the files of an archive, whose descriptor says something more, or something else."""
    return {"a.ovf": descriptor(vmdk(), len(content()), **words), "disk.vmdk": vmdk()}


def said(**words: str) -> bytes:
    """Give an archive of those."""
    return tar(described(**words))


def with_files(more: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Give an archive that has more files."""
    return tar({**described(), **more}, form)


def with_entry(name: str, kind: bytes, target: str = "") -> bytes:
    """Give an archive that has an entry which is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return tar(described(), tarfile.USTAR_FORMAT, entry)


def with_header(change: Mapping[int, bytes], at: int = 0) -> bytes:
    """Give an archive, fields of whose header ``at`` are written over, with a right checksum."""
    bent = bytearray(good())
    for offset, field in change.items():
        bent[at + offset : at + offset + len(field)] = field
    bent[at + 148 : at + 156] = b" " * 8
    checksum = sum(bent[at : at + BLOCK])
    bent[at + 148 : at + 156] = b"%06o\0 " % checksum
    return bytes(bent)


def extended(**records: str) -> bytes:
    """Give an archive with an extended header in front of each file."""
    return tar(described(), tarfile.PAX_FORMAT, pax_headers=records)


def extended_again(*, at_end: bool = False) -> bytes:
    """Give an archive with one more extended header, before another one or at the end."""
    pax = extended(comment="of the first file")
    length = 2 * BLOCK  # the header, and the block of its records
    if not at_end:
        return pax[:length] + pax
    end = len(pax.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    return pax[:end] + pax[:length] + bytes(2 * BLOCK)


def manifested(more: Mapping[str, bytes], text: bytes | None = None) -> bytes:
    """Give an archive with a manifest: that of its files and ``more``, or this text."""
    files = described()
    return tar({**files, "a.mf": manifest({**files, **more}) if text is None else text})


def bomb(how: str) -> bytes:
    """Give a stream that is a thousand times smaller than what is in it."""
    return COMPRESS[how](bytes(80 * MIB))


def cut(how: str) -> bytes:
    """Give a stream without its end."""
    return COMPRESS[how](content())[:-9]


def followed(how: str) -> bytes:
    """Give a stream that something comes behind."""
    return COMPRESS[how](content()) + b"something"


def twice(how: str) -> bytes:
    """Give a stream in a stream."""
    return COMPRESS[how](COMPRESS[how](content()))


def _archive(name: str, expected: str, build: Callable[[], bytes], container: str = "ova") -> Row:
    return Row(
        name=f"{container}: {name}",
        build=build,
        disk_format="vmdk",
        container_format=container,
        expected=expected,
    )


def _stream(name: str, expected: str, build: Callable[[], bytes], disk_format: str = "raw") -> Row:
    return Row(
        name=f"compressed: {name}",
        build=build,
        disk_format=disk_format,
        container_format="compressed",
        expected=expected,
    )


def _gzip() -> bytes:
    return COMPRESS["gzip"](content())


ARCHIVES: Final = (
    _archive("a name above the folder", "archive", partial(with_files, {"../../etc/x": b""})),
    _archive("an absolute name", "archive", partial(with_files, {"/etc/x": b""})),
    _archive("a name in a folder", "archive", partial(with_files, {"a/b": b""})),
    _archive("a name of dots", "archive", partial(with_files, {"..": b""})),
    _archive("a symbolic link", "archive",
             partial(with_entry, "b.vmdk", tarfile.SYMTYPE, "/etc/shadow")),
    _archive("a hard link", "archive", partial(with_entry, "b.vmdk", tarfile.LNKTYPE, "disk.vmdk")),
    _archive("a device", "archive", partial(with_entry, "sda", tarfile.BLKTYPE)),
    _archive("a pipe", "archive", partial(with_entry, "pipe", tarfile.FIFOTYPE)),
    _archive("a folder", "archive", partial(with_entry, "folder", tarfile.DIRTYPE)),
    _archive("a sparse file of GNU", "archive", partial(with_entry, "s", tarfile.GNUTYPE_SPARSE)),
    _archive("a long name of GNU", "archive",
             partial(with_files, {"n" * 200: b""}, tarfile.GNU_FORMAT)),
    _archive("a long name of pax", "archive",
             partial(with_files, {"n" * 200: b""}, tarfile.PAX_FORMAT)),
    _archive("a name that pax changes", "archive", partial(extended, path="disk.vmdk")),
    _archive("an extended header of an extended header", "archive", extended_again),
    _archive("an extended header of nothing", "archive", partial(extended_again, at_end=True)),
    _archive("a sparse file of pax", "archive", partial(extended, **{"GNU.sparse.major": "1"})),
    _archive("a size that pax changes", "archive", partial(extended, size=str(1 << 60))),
    _archive("a size of pax that is no number", "archive", partial(extended, size="ten")),
    _archive("an extended header without end", "archive", partial(extended, comment="x" * 70_000)),
    _archive("two files of one name", "archive",
             lambda: tar({**described(), "./disk.vmdk": b"another"})),
    _archive("too many files", "archive",
             partial(with_files, {f"file{n}": b"" for n in range(100)})),
    _archive("two descriptors", "archive", partial(with_files, {"b.ovf": b"<a/>"})),
    _archive("no descriptor", "archive", lambda: tar({"disk.vmdk": vmdk()})),
    _archive("a descriptor of 5 MiB", "archive",
             lambda: tar({"a.ovf": b" " * (5 * MIB), "disk.vmdk": vmdk()})),
    _archive("two manifests", "archive", partial(with_files, {"a.mf": b"", "b.mf": b""})),
    _archive("a file of 8 EiB", "archive",
             partial(with_header, {124: b"\x80" + (1 << 63).to_bytes(11, "big")})),
    _archive("a file of less than nothing", "archive", partial(with_header, {124: b"\xff" * 12})),
    _archive("a size that is no number", "archive", partial(with_header, {124: b"size"})),
    _archive("a wrong checksum", "archive", lambda: b"b" + good()[1:]),
    _archive("a file beyond the end", "archive", lambda: good().rstrip(b"\0")[: -2 * BLOCK]),
    _archive("cut off in a header", "archive", lambda: good()[:BLOCK - 1]),
    _archive("without an end", "archive", lambda: good().rstrip(b"\0")),
    _archive("something behind its end", "archive", lambda: good() + vmdk()),
    _archive("two MiB of nothing behind its end", "archive", lambda: good() + bytes(2 * MIB)),
    _archive("no archive", "archive", content),
    _archive("a disk in place of an archive", "archive", vmdk),
    _archive("compressed", "archive", lambda: gzipped(good())),
    _archive("two disks", "ovf", partial(said, more=ANOTHER_DISK)),
    _archive("a disk upon another", "ovf", partial(said, disk='ovf:parentRef="x"')),
    _archive("a disk elsewhere", "ovf", partial(said, href="http://127.0.0.1/disk.vmdk")),
    _archive("a disk of this host", "ovf", partial(said, href="/etc/passwd")),
    _archive("a disk in pieces", "ovf", partial(said, file='ovf:chunkSize="100"')),
    _archive("a compressed disk", "ovf", partial(said, file='ovf:compression="gzip"')),
    _archive("a disk of another length", "ovf", partial(said, file='ovf:size="5"')),
    _archive("a disk of another capacity", "ovf", partial(said, disk='ovf:capacity="512"')),
    _archive("a capacity that is no number", "ovf", partial(said, disk='ovf:capacity="ten"')),
    _archive("a unit without bound", "ovf",
             partial(said, disk='ovf:capacityAllocationUnits="byte * 2^99999"')),
    _archive("a billion laughs", "ovf", partial(said, before=LAUGHS)),
    _archive("an entity from outside", "ovf", partial(said, before=OUTSIDE)),
    _archive("a descriptor that is no XML", "ovf",
             lambda: tar({"a.ovf": b"\0" * 100, "disk.vmdk": vmdk()})),
    _archive("a descriptor of something else", "ovf",
             lambda: tar({"a.ovf": b"<Envelope/>", "disk.vmdk": vmdk()})),
    _archive("a descriptor a million deep", "ovf",
             lambda: tar({"a.ovf": b"<a>" * MIB, "disk.vmdk": vmdk()})),
    _archive("another disk than the manifest has", "manifest",
             partial(manifested, {"disk.vmdk": b"other"})),
    _archive("another descriptor than the manifest has", "manifest",
             partial(manifested, {"a.ovf": b"other"})),
    _archive("a manifest that cannot be read", "manifest", partial(manifested, {}, b"MD5(x)= 1")),
    _archive("a digest that is too short", "manifest",
             partial(manifested, {}, b"SHA256(disk.vmdk)= 1234")),
    _archive("a manifest that omits the disk", "manifest",
             lambda: manifested({}, manifest({"a.ovf": described()["a.ovf"]}))),
    _archive("a qcow2 inside", "format-mismatch", lambda: ova(made("qcow2"), len(content()))),
    _archive("a raw disk inside", "format-mismatch", lambda: ova(content(), len(content()))),
    _archive("a text descriptor inside", "text-descriptor", lambda: ova(
        b'# Disk DescriptorFile\nversion=1\nRW 4096 FLAT "/etc/passwd" 0\n'.ljust(1024, b"\0"),
        len(content()))),
    _archive("an archive with a link", "archive",
             partial(with_entry, "b", tarfile.SYMTYPE, "/"), container="ovf"),
)  # fmt: skip

STREAMS: Final = (
    *(_stream(f"a bomb of {how}", "virtual-size", partial(bomb, how)) for how in COMPRESS),
    *(
        _stream(f"{how} cut off", "compression", partial(cut, how))
        for how in COMPRESS
    ),
    *(
        _stream(f"{how} with something behind it", "compression",
                partial(followed, how))
        for how in COMPRESS
    ),
    *(
        _stream(f"{how} in {how}", "nested-container",
                partial(twice, how))
        for how in COMPRESS
    ),
    _stream("a wrong sum", "compression", lambda: _gzip()[:-8] + b"12345678"),
    _stream("only a magic", "compression", lambda: b"\x1f\x8b\x08"),
    _stream("of nothing", "empty", lambda: gzipped(b"")),
    _stream("a hundred thousand streams", "compression", lambda: gzipped(b"") * 100_000),
    _stream("a window of 2 GiB", "compression", lambda: bytes.fromhex("28b52ffd00a8010000")),
    _stream("not compressed", "compression", content),
    _stream("a zip", "compression", lambda: b"PK\x03\x04".ljust(BLOCK)),
    _stream("an lz4", "compression", lambda: bytes.fromhex("04224d18").ljust(BLOCK)),
    _stream("an archive inside", "nested-container", lambda: gzipped(good()), "vmdk"),
    _stream("a qcow2 that claims to be raw", "format-mismatch",
            lambda: gzipped(made("qcow2"))),
    _stream("a raw disk that claims to be a qcow2", "format-mismatch", _gzip, "qcow2"),
)  # fmt: skip

CONTAINERS: Final = (*ARCHIVES, *STREAMS)
