"""What a person or a script at the command line gets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import cacheagent
from cacheagent.cli import main
from tests.fakes.daemon import BROKEN, CACHED, COMING, FORBIDDEN, INSTANCE, MISSING, TWIN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run
    from tests.fakes.daemon import FakeDaemon


def test_a_disk_from_its_creation_to_its_end(run: Run, daemon: FakeDaemon) -> None:
    """A person creates a disk, looks at it, lists all, and removes it."""
    done = run("disk", "create", INSTANCE, "root", "--image", CACHED, "--size", "20GiB")
    assert done.exit_code == 0
    assert f"/srv/instances/{INSTANCE}/root.qcow2" in done.output
    assert "20.0 GiB" in done.output
    assert daemon.requests[0][3] == {"image_id": CACHED, "size_bytes": 20 << 30}
    assert run("disk", "show", INSTANCE, "root").output == done.output
    for args in ((), ("--instance", INSTANCE)):
        assert INSTANCE in run("disk", "list", *args).output
    gone = run("disk", "delete", INSTANCE, "root")
    assert gone.output == f"disk root of instance {INSTANCE}: gone\n"
    assert daemon.disks == {INSTANCE: {}}


def test_a_disk_of_an_ami_tells_what_it_is_started_by(run: Run, daemon: FakeDaemon) -> None:
    """Its kernel is named, and a ramdisk that it has not is not."""
    run("disk", "create", INSTANCE, "root", "--image", CACHED)
    kernel = {"path": "/srv/kernel.raw", "state": "ready", "size_bytes": 9, "image_id": CACHED}
    daemon.disks[INSTANCE]["root"]["boot"] = {"kernel": kernel, "ramdisk": None}
    lines = run("disk", "show", INSTANCE, "root").output.splitlines()
    assert [line.split() for line in lines if "kernel" in line] == [["kernel", "/srv/kernel.raw"]]
    assert not any("ramdisk" in line for line in lines)


def test_all_disks_of_an_instance_go_only_by_a_word_for_it(run: Run, daemon: FakeDaemon) -> None:
    """Nobody removes all disks by leaving out a name."""
    run("disk", "create", INSTANCE, "a", "--size", "1GiB")
    assert run("disk", "delete", INSTANCE).exit_code == 2
    assert run("disk", "delete", INSTANCE, "a", "--all").exit_code == 2
    assert daemon.disks[INSTANCE]
    assert run("disk", "delete", INSTANCE, "--all").exit_code == 0
    assert daemon.disks == {}


def test_every_wish_for_a_disk_is_sent(run: Run, daemon: FakeDaemon) -> None:
    """A blank disk has options of its own."""
    options = ("--size", "512MB", "--format", "raw", "--mode", "full", "--filesystem", "ext4")
    done = run("disk", "create", INSTANCE, "data", *options, "--label", "data", "--no-wait")
    assert done.exit_code == 0
    _, _, headers, body = daemon.requests[0]
    assert headers["Prefer"] == "respond-async"
    assert body == {
        "size_bytes": 512_000_000,
        "format": "raw",
        "mode": "full",
        "filesystem": "ext4",
        "label": "data",
    }


@pytest.mark.parametrize("order", ["before", "behind"])
def test_json_is_the_answer_of_the_api(run: Run, daemon: FakeDaemon, order: str) -> None:
    """A script reads what the API says; --json may stand before the command or behind it."""

    def as_json(*args: str) -> object:
        done = run("--json", *args) if order == "before" else run(*args, "--json")
        assert done.exit_code == 0
        return json.loads(done.stdout)

    disk = as_json("disk", "create", INSTANCE, "root", "--image", CACHED)
    assert disk == daemon.disks[INSTANCE]["root"]
    assert as_json("disk", "show", INSTANCE, "root") == disk
    assert as_json("disk", "list") == [disk]
    assert as_json("image", "list") == list(daemon.images.values())
    assert as_json("image", "show", CACHED) == daemon.images[CACHED]
    status = as_json("status")
    assert isinstance(status, dict)
    assert status["version"] == "0.1.0"


@pytest.mark.parametrize("command", ["pull", "create"])
def test_a_bar_tells_how_far_an_image_has_come(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """On a terminal, whoever waits for a download sees it; the answer on stdout stays clean."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    args = {
        "pull": ("image", "pull", COMING),
        "create": ("disk", "create", INSTANCE, "root", "--image", COMING),
    }
    done = run(*args[command], "--json")
    assert done.exit_code == 0
    assert "downloading" in done.stderr
    assert "GiB" in done.stderr
    assert json.loads(done.stdout)["state"] == "ready"


def test_without_a_terminal_there_is_no_bar(run: Run) -> None:
    """The log of a script stays free of it."""
    done = run("image", "pull", COMING)
    assert done.exit_code == 0
    assert done.stderr == ""


def test_a_pull_need_not_wait(run: Run) -> None:
    """The command ends at once, and the list says what is coming."""
    assert run("image", "pull", COMING, "--no-wait").exit_code == 0
    run("image", "show", COMING)
    assert "downloading 33 %" in run("image", "list").output


def test_a_pull_can_pin(run: Run, daemon: FakeDaemon) -> None:
    """An image that must stay is pinned by the same command."""
    done = run("image", "pull", CACHED, "--pin")
    assert done.exit_code == 0
    assert daemon.images[CACHED]["pinned"]


def test_an_image_may_be_given_by_a_unique_name(run: Run, daemon: FakeDaemon) -> None:
    """People remember names."""
    assert run("disk", "create", INSTANCE, "root", "--image", "twin").exit_code == 0
    assert daemon.disks[INSTANCE]["root"]["image_id"] == TWIN
    assert TWIN in run("image", "show", "twin").output


def test_an_id_in_capitals_is_an_id(run: Run) -> None:
    """What was copied from elsewhere works."""
    assert run("image", "show", CACHED.upper()).exit_code == 0


def test_a_name_that_is_not_unique_lists_the_ids(run: Run) -> None:
    """The error has what is needed to ask again."""
    run("image", "pull", COMING, "--no-wait")
    done = run("image", "evict", "debian-12")
    assert done.exit_code == 2
    assert CACHED in done.stderr
    assert COMING in done.stderr


def test_a_name_that_nothing_has_asks_for_the_id(run: Run) -> None:
    """Names are known of cached images only, and the error says so; the usage was right."""
    for command in (
        ("image", "pull", "no-such-image"),
        ("image", "show", "no-such-image"),
        ("disk", "create", INSTANCE, "root", "--image", "no-such-image"),
    ):
        done = run(*command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "'no-such-image' is cached or coming: give its id" in done.stderr


def test_an_image_that_nothing_uses_can_be_evicted(run: Run, daemon: FakeDaemon) -> None:
    """One line says that it was done."""
    done = run("image", "evict", CACHED)
    assert (done.exit_code, done.output) == (0, f"image {CACHED} evicted\n")
    assert CACHED not in daemon.images


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("disk", "show", INSTANCE, "root"), "this is disk-not-found"),
        (("disk", "list", "--instance", MISSING), "this is instance-not-found"),
        (("image", "show", MISSING), "this is image-not-found"),
        (("image", "pull", FORBIDDEN), f"image_id: {FORBIDDEN}"),
        (
            ("disk", "create", INSTANCE, "root", "--image", BROKEN),
            "Error: glance-unavailable (503): Glance answered 503 six times\n  try again in 5 s\n",
        ),
    ],
)
def test_a_refusal_is_status_1_with_its_reason(
    run: Run, args: tuple[str, ...], sentence: str
) -> None:
    """The reason is on stderr, and nothing on stdout; a program gets the problem there."""
    done = run(*args)
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert done.stdout == ""
    as_json = run(*args, "--json")
    assert (as_json.exit_code, as_json.stderr) == (1, done.stderr)
    problem = json.loads(as_json.stdout)
    assert f"Error: {problem['type'].split(':')[-1]} ({problem['status']}): " in done.stderr


def test_who_uses_a_base_is_told(run: Run) -> None:
    """An operator learns what to remove first."""
    run("disk", "create", INSTANCE, "root", "--image", CACHED)
    done = run("image", "evict", CACHED)
    assert done.exit_code == 1
    assert f"  used by: disk {INSTANCE} root\n" in done.stderr
    assert "unpin" not in done.stderr


def test_a_pinned_image_is_kept_until_it_is_unpinned(run: Run, daemon: FakeDaemon) -> None:
    """An operator pins and unpins, and the refusal in between names the command."""
    assert run("image", "pin", "debian-12").output == f"image {CACHED} pinned\n"
    refused = run("image", "evict", CACHED)
    assert refused.exit_code == 1
    assert "  used by: pin\n  `cacheagent image unpin IMAGE` takes" in refused.stderr
    assert run("image", "unpin", CACHED).output == f"image {CACHED} unpinned\n"
    assert run("image", "evict", CACHED).exit_code == 0
    assert CACHED not in daemon.images


def test_what_has_no_answer_is_null_for_programs(run: Run) -> None:
    """A script that reads JSON gets JSON from every command."""
    for args in (
        ("image", "pin", CACHED),
        ("image", "unpin", CACHED),
        ("disk", "delete", INSTANCE, "root"),
        ("image", "evict", CACHED),
    ):
        done = run(*args, "--json")
        assert (done.exit_code, done.stdout) == (0, "null\n")


def test_a_disk_that_is_not_ready_has_no_size(run: Run) -> None:
    """Nobody takes the size of a disk that is still coming for that of an empty one."""
    done = run("disk", "create", INSTANCE, "root", "--image", CACHED, "--no-wait")
    assert ["size", "-"] in [line.split() for line in done.output.splitlines()]


@pytest.mark.parametrize(
    "args",
    [
        ("disk", "create", INSTANCE, "root", "--size", "20 apples"),
        ("disk", "create", INSTANCE),
        ("imageserver", ".", "--listen", "9292"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_status_2(run: Run, daemon: FakeDaemon, args: tuple[str, ...]) -> None:
    """What cannot be meant is refused before the daemon is asked."""
    assert run(*args).exit_code == 2
    assert daemon.requests == []


def test_a_daemon_out_of_reach_is_status_3(tmp_path: Path) -> None:
    """A script can tell that from a refusal; --socket names where it looked."""
    missing = str(tmp_path / "missing.sock")
    for args in (("--socket", missing, "status"), ("status", "--socket", missing)):
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 3
        assert done.stderr == f"Error: no daemon answers at {missing}: No such file or directory\n"


def test_an_option_goes_before_the_environment(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens come from the environment, where no list of processes shows them, or by option."""
    monkeypatch.setenv("CACHEAGENT_TOKEN", "from-env")
    monkeypatch.setenv("CACHEAGENT_BEARER", "bearer")
    run("status")
    run("--token", "given", "status")
    run("status", "--token", "given")
    assert [headers["X-Auth-Token"] for _, _, headers, _ in daemon.requests] == [
        "from-env",
        "given",
        "given",
    ]
    assert daemon.requests[0][2]["Authorization"] == "Bearer bearer"


def test_names_from_outside_do_not_steer_the_terminal(run: Run, daemon: FakeDaemon) -> None:
    """Whoever names an image cannot clear an operator's screen, nor style the table."""
    daemon.images[CACHED]["name"] = "a\x1b[2J[red]b"
    output = run("image", "list").output
    assert "\x1b" not in output
    assert "a\N{REPLACEMENT CHARACTER}[2J[red]b" in output


def test_status_shows_room_and_loops(run: Run) -> None:
    """An operator sees at a glance whether all is well."""
    output = run("status").output
    for part in ("1 day, 2:03:04", "60.0 GiB of 100.0 GiB used", "reachable", "never"):
        assert part in output
    assert "evicts above 85.0 GiB, down to 75.0 GiB" in output
    assert "30.0 GiB of 50.0 GiB" in output
    assert "/scanned is empty" in output
    assert "2.0 GiB of 5.0 GiB, 1 refused" in output
    assert re.search(r"^damaged bases +3$", output, re.MULTILINE)
    assert "quarantined" not in output
    assert "backing-file: it names a backing file" in output


def test_the_version_is_told() -> None:
    """Both spellings of the option work."""
    for option in ("-V", "--version"):
        assert cacheagent.__version__ in CliRunner().invoke(main, [option]).output


def test_the_module_is_the_command() -> None:
    """``python -m cacheagent`` is the same program."""
    done = subprocess.run(
        [sys.executable, "-m", "cacheagent", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"cacheagent, version {cacheagent.__version__}\n"


@pytest.mark.parametrize(
    ("args", "status", "title"),
    [
        (("disk", "create", INSTANCE, "root", "--size", "20 apples"), 2, "usage"),
        (("image", "show", "no-such-image"), 1, "refused"),
        (("image", "list", "--socket", "/nowhere/api.sock"), 3, "daemon out of reach"),
    ],
)
def test_what_the_daemon_never_answered_is_json_too(
    run: Run, args: tuple[str, ...], status: int, title: str
) -> None:
    """A script that reads JSON gets JSON, and the same sentence as a person, however it ends."""
    done = run("--json", *args)
    assert done.exit_code == status
    document = json.loads(done.stdout)
    assert document["title"] == title
    assert document["detail"] in done.stderr
