"""The files of systemd: units, sysusers.d, tmpfiles.d."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cacheagent.cli import main
from cacheagent.config import Config
from cacheagent.sandbox.sandbox import AT_ONCE
from tests.needs import require, require_programs

FOLDER = Path(__file__).parent.parent / "systemd"
UNIT = FOLDER / "cacheagent.service"
SANDBOX = FOLDER / "cacheagent-sandbox@.service"
SOCKETS = ("cacheagent.socket", "cacheagent-sandbox.socket")
MOST_EXPOSURE = "15"
"""Tenths, as systemd-analyze takes it."""


def _service() -> dict[str, str]:
    return _section(UNIT, "Service")


def _section(unit: Path, section: str) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string(unit.read_text())
    return dict(parser[section])


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (*FOLDER.glob("*.service"), *FOLDER.glob("*.socket")))
)
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    """Every directive is one that systemd knows, with a value that it takes."""
    require_programs("systemd-analyze")
    # It wants to see the programs, and a test machine has them elsewhere.
    for unit in (*FOLDER.glob("*.service"), *FOLDER.glob("*.socket")):
        text = re.sub(r"/usr/bin/cacheagent\S*", sys.executable, unit.read_text())
        (tmp_path / unit.name).write_text(text)
    asked = name.replace("@.", "@one.")
    if asked != name:
        (tmp_path / asked).symlink_to(name)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "cacheagent" in line]
    assert complaints == []


@pytest.mark.parametrize("unit", [UNIT, SANDBOX], ids=lambda unit: unit.name)
def test_what_is_left_open_is_little(unit: Path) -> None:
    """An exposure of 1.5 of 10 at most is what systemd finds."""
    require_programs("systemd-analyze")
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}"]
    done = subprocess.run([*words, str(unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_threads_of_long_work_may_step_back_for_requests() -> None:
    """What comes last of the filters holds, and lets a thread lower its priority."""
    filters = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    named = [words for words in filters if re.search(r"@resources|\bsetpriority\b", words)]
    assert named[-1] == "setpriority"
    assert not _service()["CapabilityBoundingSet"]


def test_what_speaks_with_the_network_makes_no_namespaces() -> None:
    """The daemon's unit forbids them all; the one that makes them has no network."""
    assert _service()["RestrictNamespaces"] == "yes"
    assert _section(SANDBOX, "Service")["PrivateNetwork"] == "yes"


def test_the_sockets_are_those_of_the_defaults() -> None:
    """Without a word in the configuration the daemon is reached, and reaches its sandbox."""
    api, sandbox = (_section(FOLDER / name, "Socket") for name in SOCKETS)
    assert api["ListenStream"] == str(Config().api.socket)
    assert int(api["SocketMode"], 8) == Config().api.socket_mode
    assert sandbox["ListenStream"] == str(Config().qemu.sandbox_socket)
    assert sandbox["SocketMode"] == "0600"


def test_the_sandbox_is_never_shut_for_too_many_programs() -> None:
    """It takes in all that the daemon has run at once, and as many that are about to end."""
    socket = _section(FOLDER / "cacheagent-sandbox.socket", "Socket")
    assert int(socket["MaxConnections"]) >= 2 * AT_ONCE
    assert socket["TriggerLimitIntervalSec"] == "0"


def test_the_user_and_the_folders_are_made(tmp_path: Path) -> None:
    """sysusers.d makes the user of the units, tmpfiles.d the folders, both as systemd does it."""
    require_programs("systemd-sysusers", "systemd-tmpfiles")
    require(os.geteuid() == 0, "only root makes users")
    (tmp_path / "etc").mkdir()
    for tool, name in (
        (["systemd-sysusers"], "cacheagent.sysusers"),
        (["systemd-tmpfiles", "--create"], "cacheagent.tmpfiles"),
    ):
        words = [*tool, f"--root={tmp_path}", str(FOLDER / name)]
        subprocess.run(words, check=True, capture_output=True)
    user = re.search(r"^cacheagent:x:(\d+):", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert user is not None
    modes = {"run/cacheagent": 0o755, "var/lib/cacheagent": 0o751}
    for folder, mode in modes.items():
        found = (tmp_path / folder).stat()
        assert (found.st_uid, found.st_mode & 0o7777) == (int(user[1]), mode)


def test_the_unit_calls_commands_that_exist() -> None:
    """The command line of the unit is one that cacheagent has."""
    command = _service()["ExecStart"].split()[1]
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_a_mistake_in_the_configuration_is_not_tried_again(tmp_path: Path) -> None:
    """The status that a start ends with then is the one after which systemd does not restart."""
    (tmp_path / "agent.toml").write_text("glance.retires = 3\n")
    done = CliRunner().invoke(main, ["serve", "--config", str(tmp_path / "agent.toml")])
    service = _service()
    assert service["RestartPreventExitStatus"] == str(done.exit_code)
    assert "ExecStartPre" not in service


def test_the_unit_makes_the_folders_of_the_defaults() -> None:
    """Without a configuration of folders the daemon finds those that systemd made for it."""
    service, config = _service(), Config()
    assert config.storage.state_dir == Path("/var/lib") / service["StateDirectory"]
    assert config.api.socket.parent == Path("/run") / service["RuntimeDirectory"]


def test_the_watchdog_allows_for_a_slow_host() -> None:
    """A daemon that beats in half of the time is not ended for one late beat."""
    assert re.fullmatch(r"[3-9]\ds", _service()["WatchdogSec"])
