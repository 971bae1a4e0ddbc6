"""The service file of systemd."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from cacheagent.cli import main
from cacheagent.config import Config
from tests.needs import require

UNIT = Path(__file__).parent.parent / "systemd" / "cacheagent.service"


def _service() -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Every directive is one that systemd knows, with a value that it takes."""
    require(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    # It wants to see the programs, and a test machine has them elsewhere.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/cacheagent", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []


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
