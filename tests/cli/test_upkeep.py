"""The commands by which an operator looks after the cache."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cacheagent.client import sse
from tests.fakes.daemon import CACHED, COMING, MISSING, NOW, TWIN

if TYPE_CHECKING:
    from tests.cli.conftest import Run
    from tests.fakes.daemon import FakeDaemon


def test_why_is_told_in_a_sentence_first(run: Run) -> None:
    """Below it stand the figures that it comes from."""
    done = run("image", "why", "twin")
    assert done.exit_code == 0
    first, _, *facts = done.output.splitlines()
    assert first == "It stays, as an example."
    table = [line.split() for line in facts]
    assert ["rules", "not_needed"] in table
    assert ["in", "the", "order", "number", "1", "of", "1"] in table
    assert ["max_idle", "at", NOW] in table


def test_why_names_every_user(run: Run, daemon: FakeDaemon) -> None:
    """A pin is one; a base in use has no place in the order, and no rule has a say."""
    daemon.images[CACHED]["pinned"] = True
    output = run("image", "why", CACHED).output
    assert f"pin {CACHED}" in output
    for text in ("in the order", "rules", "max_idle at", " -\n"):
        assert text not in output


def test_a_sound_base_is_verified(run: Run) -> None:
    """One digest is shown, since both are the same."""
    done = run("image", "verify", CACHED)
    assert done.exit_code == 0
    table = [line.split() for line in done.output.splitlines()]
    assert ["outcome", "verified"] in table
    assert ["sha512", "ab" * 64] in table
    assert "expected" not in done.output
    assert "1.5 GiB/s" in done.output


def test_a_damaged_base_is_status_1(run: Run) -> None:
    """A script notices without reading, and a person sees both digests."""
    done = run("image", "verify", TWIN)
    assert done.exit_code == 1
    for text in ("damaged", "its sha512 is another one", "ab" * 64, "cd" * 64):
        assert text in done.output
    as_json = run("image", "verify", TWIN, "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["outcome"]) == (1, "damaged")


def test_a_verification_tells_that_it_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal something moves; the answer on stdout stays clean."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    done = run("image", "verify", CACHED, "--json")
    assert "reading the base" in done.stderr
    assert json.loads(done.stdout)["outcome"] == "verified"


def test_a_dry_run_tells_what_would_go(run: Run, daemon: FakeDaemon) -> None:
    """With reason and size; what would stay, with why; and nothing has changed."""
    done = run("prune", "--dry-run", "--free", "2GiB")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == "1 base would go, 1.5 GiB freed"
    assert lines[1] == "1 refused image would go from quarantine"
    assert lines[3].split() == [
        *(CACHED, "debian-12", "operator", "1.5", "GiB", "2026-03-01", "10:00"),
    ]
    assert "1 base would stay" in lines
    assert lines[-1].split()[:4] == [TWIN, "twin", "1.5", "GiB"]
    assert lines[-1].endswith("1 doubt; it changed while the plan was made, seen at the last look")
    assert CACHED in daemon.images
    assert daemon.requests[-1][3] == {"dry_run": True, "free_bytes": 2 << 30}


def test_a_pass_tells_what_went_and_what_is_short_still(run: Run, daemon: FakeDaemon) -> None:
    """Names are those from before the pass."""
    daemon.images[TWIN]["pinned"] = True
    lines = run("prune").output.splitlines()
    assert lines[0] == "1 base went, 1.5 GiB freed"
    assert lines[1] == "1 refused image went from quarantine"
    assert "debian-12" in lines[3]
    assert lines[-1] == "1.0 GiB that are needed cannot be freed"
    assert CACHED not in daemon.images
    assert daemon.requests[-1][3] == {"dry_run": False, "free_bytes": None}
    assert run("prune").output.splitlines()[0] == "0 bases went, 0 B freed"


def test_a_pass_needs_no_names(run: Run, daemon: FakeDaemon) -> None:
    """Where root may make a pass, and list the images not, the pass is made all the same."""
    daemon.listing = False
    done = run("prune")
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == "1 base went, 1.5 GiB freed"
    assert CACHED not in daemon.images


def test_a_pass_is_the_answer_of_the_api_for_programs(run: Run) -> None:
    """A script reads the plan as the API gives it."""
    pruned = json.loads(run("prune", "--dry-run", "--json").stdout)
    assert [each["image_ids"] for each in pruned["evicted"]] == [[CACHED]]


def test_a_size_that_is_none_is_wrong_usage(run: Run, daemon: FakeDaemon) -> None:
    """Nothing is evicted by mistake."""
    assert run("prune", "--free", "much").exit_code == 2
    assert daemon.requests == []


def test_a_refusal_of_each_is_status_1(run: Run) -> None:
    """As with every other command."""
    for command in ("why", "verify"):
        assert run("image", command, MISSING).exit_code == 1


@pytest.fixture
def _events(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen, and then nothing more for as long as the test runs."""
    monkeypatch.setattr(sse, "RECONNECT_SECONDS", 60)
    daemon.events = [("disk.created", f'{{"at": "{NOW}", "path": "/srv/root.qcow2"}}')]


@pytest.mark.usefixtures("_events")
def test_top_shows_what_is_coming_and_what_happened(run: Run) -> None:
    """Room, downloads with their progress, and the last events, in one frame."""
    run("image", "pull", COMING, "--no-wait")
    run("image", "show", COMING)
    output = run("top", "--count", "2", "--interval", "0.3").output
    for text in ("60.0 GiB of 100.0 GiB", "debian-12", "downloading", "1.0 GiB of 3.0 GiB"):
        assert text in output
    assert "10:00:00  disk.created  path /srv/root.qcow2" in output


@pytest.mark.usefixtures("_events")
def test_top_draws_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the screen, and gives it back."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    output = run("top", "--count", "1").output
    assert "\x1b[?1049h" in output
    assert "\x1b[?1049l" in output


@pytest.mark.usefixtures("_events")
def test_top_is_one_line_of_json_for_each_look(run: Run) -> None:
    """A program follows the cache line by line."""
    lines = run("top", "--json", "--count", "2", "--interval", "0.3").stdout.splitlines()
    looks = [json.loads(line) for line in lines]
    assert [look["status"]["version"] for look in looks] == ["0.1.0", "0.1.0"]
    assert [event["event"] for event in looks[1]["events"]] == ["disk.created"]


def test_top_without_a_terminal_looks_once(run: Run) -> None:
    """What is written to a file ends by itself."""
    assert run("top").exit_code == 0


def test_top_ends_with_the_daemon(run: Run, daemon: FakeDaemon) -> None:
    """Nobody watches a picture that stands still."""
    daemon.events = []  # whoever follows is told that it is stopping
    done = run("top", "--count", "9", "--interval", "60")
    assert done.exit_code == 1
    assert "the daemon is stopping" in done.stderr


@pytest.mark.usefixtures("_events")
def test_top_ends_well_by_ctrl_c(address: str) -> None:
    """That is how a person ends it: status 0, and no traceback."""
    # Whoever runs the tests in the background has Ctrl-C ignored, and all children with them.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "cacheagent"]
    with subprocess.Popen(
        [*command, "--socket", address, "top", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
