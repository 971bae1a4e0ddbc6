"""Commands that serve, and the one that checks a configuration."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

from click.testing import CliRunner

from cacheagent.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def test_a_good_configuration_is_ok_and_tells_what_has_no_effect(tmp_path: Path) -> None:
    """An operator checks a file before a restart."""
    path = tmp_path / "agent.toml"
    path.write_text("images.verify_signatures = true\n")
    done = CliRunner().invoke(main, ["check-config", str(path)])
    assert done.exit_code == 0
    assert done.stdout == "images.verify_signatures has no effect in this version\nOK\n"


def test_a_bad_configuration_is_status_2_and_names_the_key(tmp_path: Path) -> None:
    """Neither the check nor the daemon goes on with it."""
    path = tmp_path / "agent.toml"
    path.write_text("glance.retires = 3\n")
    for args in (["check-config", str(path)], ["serve", "--config", str(path)]):
        done = CliRunner().invoke(main, args)
        assert done.exit_code == 2
        assert done.stderr == (
            f"Error: {path}: glance.retires: unknown key (did you mean glance.retries?)\n"
        )


def test_the_image_server_says_where_it_serves(tmp_path: Path) -> None:
    """A folder becomes an image service by one command, and Ctrl-C ends it quietly."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cacheagent",
            "imageserver",
            str(tmp_path),
            "--listen",
            "127.0.0.1:0",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stderr
        url = server.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{url}/v2/images") as answer:  # noqa: S310 -- our own server
            assert json.load(answer)["images"] == []
        server.send_signal(signal.SIGINT)
        assert server.stderr.read() == ""
    assert server.returncode == 0
