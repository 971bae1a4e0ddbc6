"""Which bases are used by overlays, whoever made them and wherever they lie."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cacheagent.backends.qcow2 import Overlays, OverlayScanner, bases_named
from tests.fakes.qcow2 import write_header, write_overlay
from tests.fakes.values import base_id
from tests.needs import require_programs

ONE, TWO = f"{base_id(1)}.raw", f"{base_id(2)}.qcow2"


class Host:
    """Folders as on a host: bases, instances, and one more that is looked through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bases = folder / "state" / "bases"
        self.instances = folder / "instances"
        self.more = folder / "more"
        self.bases.mkdir(parents=True)
        self.instances.mkdir()
        (self.more / "lost+found").mkdir(parents=True)
        for name in (ONE, TWO):
            (self.bases / name).touch()
        self.one, self.two = self.bases / ONE, self.bases / TWO
        self.scanner = OverlayScanner(self.bases)

    def overlay(self, name: str, backing: str | Path) -> Path:
        """Write an overlay as a disk of an instance."""
        return write_overlay(self.instances / name, backing)

    def scan(self) -> Overlays:
        """Scan as the agent does."""
        return self.scanner.scan(self.instances, [self.more])

    def users(self) -> dict[str, set[Path]]:
        """Scan, and give the users where nothing is in doubt."""
        found = self.scan()
        assert found.doubts == ()
        return {base: set(map(Path, paths)) for base, paths in found.users.items()}

    def doubtful(self) -> list[tuple[Path, str]]:
        """Scan, and give what is in doubt."""
        return [(doubt.path, doubt.why) for doubt in self.scan().doubts]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Give the folders of a host, with two bases and no overlay."""
    return Host(tmp_path)


def test_nothing_is_used_where_nothing_lies(host: Host) -> None:
    """A host without instances has no users, and no doubt."""
    assert host.users() == {}


def test_overlays_of_qemu_img_are_found(host: Host) -> None:
    """Disks in the folder of instances and in folders of others are listed by their bases."""
    require_programs("qemu-img")
    disks = [host.instances / "a.qcow2", host.more / "b"]
    for disk, base in zip(disks, (host.one, host.two), strict=True):
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base)]
        subprocess.run([*command, str(disk), "1M"], check=True)
    assert host.users() == {ONE: {disks[0]}, TWO: {disks[1]}}


@pytest.mark.parametrize(
    "name",
    ["absolute", "relative", "detour", "link", "file-link", "file", "json", "escaped", "nested"],
)
def test_every_spelling_leads_to_the_base(host: Host, name: str) -> None:
    """However an overlay names its base, it keeps it, and no other."""
    (host.folder / "link").symlink_to(host.bases)
    (host.folder / "file-link").symlink_to(host.one)
    inner = "json:" + json.dumps({"driver": "file", "filename": str(host.one)})
    backing = {
        "absolute": str(host.one),
        "relative": f"../../state/bases/{ONE}",
        "detour": f"{host.bases}/../bases/./{ONE}",
        "link": f"{host.folder}/link/{ONE}",
        "file-link": f"{host.folder}/file-link",
        "file": f"file:{host.one}",
        "json": inner,
        "escaped": inner.replace("sha512", "sh\\u0061512"),
        "nested": "json:" + json.dumps({"driver": "raw", "file": inner}),
    }
    path = host.overlay("a/disk", backing[name])
    assert host.users() == {ONE: {path}}


def test_folder_of_the_bases_may_be_a_link(tmp_path: Path) -> None:
    """Where the state folder is a link, both of its names mean the same bases."""
    host = Host(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    bases = tmp_path / "link" / "state" / "bases"
    paths = {host.overlay("a/disk", host.one), host.overlay("b/disk", bases / ONE)}
    found = OverlayScanner(bases).scan(host.instances)
    assert set(map(Path, found.users[ONE])) == paths


def test_relative_name_begins_where_the_overlay_lies(host: Host) -> None:
    """An overlay that is a link may be opened by either of its names."""
    real = write_overlay(host.folder / "elsewhere" / "deep" / "disk", f"../../state/bases/{ONE}")
    link = host.instances / "disk"
    link.symlink_to(real)
    assert host.users() == {ONE: {link}}


def test_other_copies_and_networks_are_not_ours(host: Host) -> None:
    """A file of the same name elsewhere, or a disk that is served, keeps nothing here."""
    (host.folder / "copy").mkdir()
    (host.folder / "copy" / ONE).touch()
    host.overlay("a/disk", host.folder / "copy" / ONE)
    host.overlay("b/disk", "nbd://host/disk")
    assert host.users() == {}


def test_name_of_a_base_that_leads_nowhere_is_taken_for_it(host: Host) -> None:
    """Whoever wrote the name may see the folder of the bases elsewhere."""
    there, here = host.overlay("a/disk", host.folder / "away" / ONE), host.overlay("b/disk", ONE)
    assert host.users() == {ONE: {there, here}}


def test_base_whose_file_is_gone_is_named(host: Host) -> None:
    """Who needs a base that somebody removed is still known."""
    host.one.unlink()
    path = host.overlay("a/disk", host.one)
    assert host.users() == {ONE: {path}}


def test_name_that_depends_on_who_opens_it_keeps_the_base(host: Host) -> None:
    """A path relative to nobody knows what, or of a protocol, counts by the name of the base."""
    first = host.overlay("a/disk", f"file:{ONE}")
    second = host.overlay("b/disk", f"blkdebug::{ONE}")
    assert host.users() == {ONE: {first, second}}


def test_chain_is_followed_to_its_end(host: Host) -> None:
    """Over files inside and outside of the folders, at any depth, each overlay counts."""
    outside = host.folder / "golden" / "c"
    third = write_overlay(outside, host.one)
    second = host.overlay("b/disk", third)
    relative = write_overlay(host.more / "x" / "disk", "../../instances/b/disk")
    (host.folder / "file").touch()
    deep = host.folder / "file"
    write_overlay(host.folder / "chain" / "0", host.two)
    for number in range(1, 100):
        deep = write_overlay(host.folder / "chain" / str(number), str(number - 1))
    last = host.overlay("c/disk", deep)
    assert host.users() == {ONE: {second, relative}, TWO: {last}}


def test_circle_of_backing_files_has_an_end(host: Host) -> None:
    """Overlays that name one another, or themselves, lead to no base, and are no doubt."""
    host.overlay("a", "b")
    host.overlay("b", "a")
    host.overlay("self", "self")
    (host.instances / "here").symlink_to(".")
    host.overlay("growing", "here/growing")
    assert host.users() == {}


def test_intermediate_that_cannot_be_read_is_a_doubt(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the middle of a chain that is there and closed to us may lead to any base."""
    middle = write_overlay(host.folder / "closed", host.one)
    disk = host.overlay("a/disk", middle)
    _forbid(monkeypatch, "open", middle)
    why = f"is a backing file and cannot be read: Permission denied; {disk} leads to it"
    assert host.doubtful() == [(middle, why)]


def test_missing_intermediate_is_a_doubt_on_no_volume(host: Host) -> None:
    """A chain that ends in an empty or missing folder may go on when the volume is mounted."""
    volume = host.folder / "volume"
    host.overlay("a/disk", volume / "x" / "middle")
    ((path, why),) = host.doubtful()
    assert path == volume / "x" / "middle"
    assert "is not there, and its folder cannot be read" in why
    (volume / "x").mkdir(parents=True)
    ((_, why),) = host.doubtful()
    assert "in an empty folder" in why
    (volume / "x" / "another").touch()
    assert host.doubtful() == []


@pytest.mark.parametrize(
    "name", ['json:{{"filename": "{one}"', "json:{one}", "json:{{'file.filename': '{one}'}}"]
)
def test_name_that_qemu_cannot_read_keeps_what_it_names(host: Host, name: str) -> None:
    """A broken ``json:`` name leads nowhere, and keeps the bases whose names stand in it."""
    path = host.overlay("a/disk", name.format(one=host.one))
    assert host.users() == {ONE: {path}}


def test_raw_disk_is_no_doubt(host: Host) -> None:
    """A guest that writes a qcow2 header into its raw disk does not hold the whole cache."""
    path = host.overlay("a/root.raw", f'json:{{"filename": "{host.one}"')
    host.overlay("b/root.raw", host.folder / "unmounted" / "x")
    assert host.users() == {ONE: {path}}
    disk = host.overlay("c/disk", host.folder / "unmounted" / "x")
    assert [path for path, _ in host.doubtful()] == [host.folder / "unmounted" / "x"]
    disk.unlink()
    assert host.doubtful() == []


def test_disk_that_nova_calls_raw_is_no_doubt(host: Host) -> None:
    """Nova writes down the format by which QEMU opens each disk; that of no other file counts."""
    disk = host.overlay("guest/disk", host.folder / "unmounted" / "x")
    told = disk.with_name("disk.info")
    told.write_text(json.dumps({str(disk): "raw"}))
    assert host.users() == {}
    (host.folder / "link").symlink_to(host.instances)
    told.write_text(json.dumps({f"{host.folder}/link/guest/disk": "raw"}))
    assert host.users() == {}
    write_overlay(disk, host.one)
    assert host.users() == {ONE: {disk}}


@pytest.mark.parametrize(
    "told",
    [
        '{"DISK": "qcow2"}',
        '{"DISK.eph0": "raw"}',
        '{"/elsewhere/disk": "raw"}',
        '{"DISK": ["raw"]}',
        '["DISK"]',
        '{"DISK": "raw"',
        "[" * 5000,
    ],
)
def test_nova_has_to_say_it_of_this_disk(host: Host, told: str) -> None:
    """What cannot be read, or says it of another file, removes no doubt."""
    disk = host.overlay("guest/disk", host.folder / "unmounted" / "x")
    disk.with_name("disk.info").write_text(told.replace("DISK", str(disk)))
    assert [path for path, _ in host.doubtful()] == [host.folder / "unmounted" / "x"]


def test_doubt_names_an_overlay_that_leads_to_it(host: Host) -> None:
    """Of many overlays with one missing file, the operator is told one, and where it lies."""
    for number in range(3):
        host.overlay(f"{number}/disk", host.folder / "unmounted" / "x")
    ((_, why),) = host.doubtful()
    assert any(f"; {host.instances}/{number}/disk leads to it" in why for number in range(3))


def test_garbage_keeps_what_it_names(host: Host) -> None:
    """A file with a broken header stops nothing, and keeps the bases that it mentions."""
    broken = write_header(host.instances / "broken", version=7, name=os.fsencode(host.one))
    cut = write_header(
        host.instances / "cut", name=f"{host.bases}/{base_id(2)}".encode(), length=900
    )
    (host.instances / "empty").write_bytes(b"QFI\xfb")
    sound = host.overlay("sound", host.two)
    above = host.overlay("above", broken)
    assert host.users() == {
        ONE: {broken, above},
        TWO: {cut, sound},
        TWO.replace("qcow2", "raw"): {cut},
    }


def test_links_and_circles_are_walked(host: Host) -> None:
    """A folder behind a link is looked through once, wherever the links lead."""
    moved = host.folder / "moved"
    write_overlay(moved / "disk", host.one)
    (moved / "up").symlink_to(host.instances)
    for name in ("linked", "again"):
        (host.instances / name).symlink_to(moved)
    (host.instances / "round").symlink_to(host.instances)
    (paths,) = host.users().values()
    assert len(paths) == 1
    assert paths < {host.instances / "linked" / "disk", host.instances / "again" / "disk"}


def test_what_is_no_file_is_passed_by(host: Host) -> None:
    """Pipes and devices are not opened, and what nobody can open leads nowhere."""
    os.mkfifo(host.instances / "pipe")
    (host.folder / "loop").symlink_to("loop")
    names = [str(host.instances / "pipe"), "/dev/null", str(host.folder), "..", "../../loop"]
    for number, name in enumerate([*names, "x" * 300]):
        host.overlay(f"{number}/disk", name)
    assert host.users() == {}


@pytest.mark.parametrize("root", ["instances", "more"])
def test_folder_that_is_not_there_is_a_doubt(host: Host, root: str) -> None:
    """Neither the instances nor a folder of others may be missing."""
    folder = host.folder / root
    folder.rename(host.folder / "away")
    assert host.doubtful() == [(folder, "cannot be read: No such file or directory")]


def test_empty_folder_of_others_is_a_doubt(host: Host) -> None:
    """It looks like a mount point without its file system; the instances may be empty."""
    (host.more / "lost+found").rmdir()
    why = "is empty, as a mount point is without its file system"
    assert host.doubtful() == [(host.more, why)]


def test_what_cannot_be_read_is_a_doubt(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a file or a link that shows nothing may hide an overlay of any base."""
    folder = host.instances / "folder"
    folder.mkdir()
    file = host.overlay("file", host.one)
    (host.instances / "loop").symlink_to("loop")
    (host.instances / "nowhere").symlink_to(host.folder / "gone")
    _forbid(monkeypatch, "scandir", folder)
    _forbid(monkeypatch, "open", file)
    assert dict(host.doubtful()) == {
        folder: "cannot be read: Permission denied",
        file: "cannot be read: Permission denied",
        host.instances / "loop": "cannot be read: Too many levels of symbolic links",
        host.instances / "nowhere": "is a link that leads nowhere",
    }


def test_what_goes_meanwhile_is_no_doubt(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is removed while somebody looks is nobody's."""
    folder = host.overlay("a/disk", host.one).parent
    file = host.overlay("file", host.two)
    for name, path in (("scandir", folder), ("open", file)):
        _forbid(monkeypatch, name, path, FileNotFoundError)
    for path in (folder / "disk", file):
        path.unlink()
    folder.rmdir()
    assert host.users() == {}


def test_later_scan_sees_what_changed(host: Host) -> None:
    """A scan tells what lies there now, not what lay there before."""
    path = host.overlay("a/disk", host.one)
    assert host.users() == {ONE: {path}}
    write_overlay(path, host.two)
    assert host.users() == {TWO: {path}}
    path.unlink()
    assert host.users() == {}


def test_names_of_qemu_lead_to_bases(host: Host) -> None:
    """What a running guest has open is told by the names that its QEMU gives."""
    (host.folder / "link").symlink_to(host.bases)
    assert bases_named(host.bases, [str(host.one), "nbd://host/x", "relative", ""]) == {ONE}
    assert bases_named(host.bases, [f"{host.folder}/link/{TWO}"]) == {TWO}
    assert bases_named(host.bases, [f'json:{{"file.filename": "{host.one}"}}', TWO]) == {ONE, TWO}
    assert bases_named(host.bases, [f'json:{{"file.filename": "{host.one}"']) == {ONE}


def _forbid(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    path: Path,
    error: type[OSError] = PermissionError,
) -> None:
    """Let a function of ``os`` fail for one path; tests may run as root, whom nothing stops."""
    real = getattr(os, name)

    def forbidden(given: object, *rest: object) -> object:
        if given == str(path):
            raise error(1, os.strerror(13), given)
        return real(given, *rest)

    monkeypatch.setattr(os, name, forbidden)
